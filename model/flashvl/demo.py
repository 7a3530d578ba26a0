"""`flashvl demo`: the packaged tiny model on real input, its score, and where the time goes.

Three parts: pictures asked about one by one, the answers streaming; exact match on the shipped
held-out questions (and on freshly drawn ones, where asked for) beside two controls: the same
questions with other pictures, and always giving the most frequent answer; the time of each part of
an answer, for each backend of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from flashvl.generate import Timings, generate
from flashvl_kernels import backend, backends
from flashvl_kernels.spec import REGISTRY

if TYPE_CHECKING:
    from flashvl.model import FlashVL
    from flashvl.train.heldout import Case

FOLDER = Path(__file__).parent / "assets" / "demo"
FRESH_SEED = 2505  # questions nobody looked at while the recipe was found
TIMED_TOKENS = 32  # a tiny answer has 1 to 5 tokens: too few to time a step
Write = Callable[[str], object]


@dataclass(frozen=True)
class Question:
    """One question about one demo picture."""

    image: Path
    question: str
    answer: str


def load_questions(folder: Path = FOLDER) -> list[Question]:
    """The questions of demo.json, in order."""
    entries = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    return [
        Question(folder / entry["image"], turn["question"], turn["answer"])
        for entry in entries
        for turn in entry["turns"]
    ]


def run(model: FlashVL, write: Write, only: str | None = None, fresh: int = 0) -> None:
    """The whole demo. write: takes text as it comes. only: the backend to time, else all.

    fresh: also score that many held-out questions of each of the two sets drawn now, which needs
    the extra "train".
    """
    from flashvl.train.heldout import load_heldout, make_heldout
    from flashvl.train.tiled_families import FAMILIES
    from flashvl.train.tiled_heldout import as_cases, load_cases, make_all_cases

    questions = load_questions()
    ask_each(model, questions, write)
    write("\nHeld-out questions, exact match\n")
    score_cases(model, load_heldout(), write)
    write("\nHeld-out questions about pictures of several tiles, exact match\n")
    score_cases(model, as_cases(load_cases()), write)
    if fresh:
        write(f"\n{fresh} held-out questions drawn now (seed {FRESH_SEED}), exact match\n")
        score_cases(model, make_heldout(fresh, FRESH_SEED), write)
        tiled = as_cases(make_all_cases(-(-fresh // len(FAMILIES)), FRESH_SEED))
        write(f"\n{len(tiled)} about pictures of several tiles drawn now, exact match\n")
        score_cases(model, tiled, write)
    write("\n")
    names = [only] if only else backends.available(model.device.type)
    time_backends(model, questions, write, names)


def ask_each(model: FlashVL, questions: list[Question], write: Write) -> int:
    """Asks one by one and streams the answers; returns how many were as expected."""
    write("Questions about pictures (greedy, answers as they stream)\n")
    image_width = max(len(q.image.name) for q in questions)
    width = max(len(q.question) for q in questions)
    right = 0
    for q in questions:
        write(f"  {q.image.name:<{image_width}}  {q.question:<{width}}  ")
        text = generate(model, q.image, q.question, max_new_tokens=16, stream=write).text
        same = text.strip() == q.answer
        right += same
        write("  right\n" if same else f"  wrong: expected {q.answer}\n")
    write(f"  {right} of {len(questions)} as expected\n")
    return right


def score_cases(model: FlashVL, cases: list[Case], write: Write) -> None:
    """Exact match per kind, beside the two controls."""
    from flashvl.train.heldout import chance, score, shuffled

    true, control, blind = score(model, cases), score(model, shuffled(cases)), chance(cases)
    write("  kind         right   of       %   other picture %   best blind guess %\n")
    for kind, (right, total) in true.items():
        other = 100 * control[kind][0] / control[kind][1]
        write(
            f"  {kind:<11} {right:>6} {total:>4} {100 * right / total:>7.1f} {other:>17.1f}"
            f" {100 * blind[kind]:>20.1f}\n"
        )
    total = sum(of for _, of in true.values())
    all_right = sum(right for right, _ in true.values())
    other = 100 * sum(right for right, _ in control.values()) / total
    guess = 100 * sum(blind[kind] * of for kind, (_, of) in true.items()) / total
    write(
        f"  {'all':<11} {all_right:>6} {total:>4} {100 * all_right / total:>7.1f} {other:>17.1f}"
        f" {guess:>20.1f}\n"
    )


def time_backends(
    model: FlashVL, questions: list[Question], write: Write, names: list[str]
) -> None:
    """The median time of each part of an answer, a row a backend."""
    pictures = {q.image: q for q in questions}
    kind = str(model.dtype).removeprefix("torch.")
    write(
        f"Time of an answer on {model.device}, {kind}: median of {len(pictures)} pictures, "
        f"one at a time, {TIMED_TOKENS} tokens each\n"
    )
    write("  backend      image ms  vision ms  prefill ms  first token ms  decode tok/s\n")
    for name in names:
        # Where a backend has no kernel for an op yet, the reference stands in; the row says so.
        chosen = name if name in ("auto", "torch") or "," in name else f"{name},torch"
        if name == "torch":  # plain rows: the reference would unpack panels in every call
            model.requires_grad_(True).requires_grad_(False)
        with backend(chosen):
            times = [_timed(model, q) for q in [next(iter(pictures.values())), *pictures.values()]]
        rows = times[1:]  # the first call fills caches
        write(
            f"  {chosen:<11} {_ms(rows, 'image_s'):>9} {_ms(rows, 'vision_s'):>10}"
            f" {_ms(rows, 'prefill_s'):>11} {_ms(rows, 'ttft_s'):>15}"
            f" {median(t.decode_tokens_per_s for t in rows):>13.0f}\n"
        )
    for name in names:
        if name not in ("auto", "torch") and "," not in name:
            write(_note(name))


def _note(name: str) -> str:
    """What a row of a backend that lacks some ops is made of."""
    lacking = sorted(op for op, spec in REGISTRY.items() if name not in spec.kernels)
    return f"  {name} has no kernel for {', '.join(lacking)}: torch ran these\n" if lacking else ""


def _timed(model: FlashVL, q: Question) -> Timings:
    return generate(
        model, q.image, q.question, max_new_tokens=TIMED_TOKENS, ignore_eos=True
    ).timings


def _ms(times: list[Timings], name: str) -> str:
    return f"{1000 * median(getattr(t, name) for t in times):.2f}"
