"""What stitching and compression buy: every policy on the held-out cases, and what each costs.

    python -m flashvl.train.study            # every case, the shipped checkpoint; writes docs/
    python -m flashvl.train.study --quick    # a quarter of the cases; writes build/study
    python -m flashvl.train.study --page     # docs/ from the results there
    python -m flashvl.train.study --from build/tiles/checkpoint ...    # other ones

--from is what `flashvl.train.tiles` exported, several for several seeds. The results are JSON
lines: the cases, then a line for each checkpoint and policy with what was right of them (1, 0, or -
where the policy cannot span the picture), the same with another case's picture, and the costs. The
page and its plots come from that file alone. --quick says whether its answers are those that the
file has for the same cases: not more than CHANGED of them may differ, as rounding on another CPU
turns a few close calls.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flashvl.chat import encode_prompt
from flashvl.checkpoint import find
from flashvl.generate import generate
from flashvl.model import FlashVL
from flashvl.train import exam, study_page
from flashvl.train.policies import SQUARE, Policy, cost, grid_for, policies
from flashvl.train.seams import Box, Seam, seam
from flashvl.train.tiled_example import TiledExample, plain_grid
from flashvl.train.tiled_heldout import load_cases
from flashvl.train.tiles import second_input

RESULTS = Path("docs/results/stitching.jsonl")
PAGE = Path("docs/stitching.md")
QUICK_EVERY = 4  # pairs of cases: one on a seam, one off it
TIMED, TIMED_QUICK = 24, 6  # pictures that the first token is timed on
CHANGED = 0.02
QUICK = Path("build/study")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model by its two adapter inputs."""

    name: str
    models: dict[str, FlashVL]

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """What `flashvl.train.tiles` exported, in its own bf16."""
        models = {"pool": FlashVL.from_pretrained(folder), "shuffle": second_input(folder)}
        return cls(folder.name, models)


def quick_part(cases: Sequence[TiledExample]) -> list[int]:
    """Indices of a quarter of the cases, seams balanced as they are."""
    return [index for index in range(len(cases)) if index // 2 % QUICK_EVERY == 0]


def own_seam(case: TiledExample, policy: Policy) -> Seam:
    """How the cuts of a policy's own grid go through what a case asks about."""
    margin = policy.margin
    size = case.size[0] + 2 * margin, case.size[1] + 2 * margin
    grid = grid_for(policy, case.size)
    boxes = tuple(Box(*box).moved(margin, margin) for box in case.boxes)
    return max((seam(box, size, grid) for box in boxes), key=lambda found: found.share)


def run(
    checkpoints: Sequence[Checkpoint], cases: Sequence[TiledExample], timed: int
) -> Iterator[dict[str, Any]]:
    """The lines of the result file."""
    yield {
        "what": "study", "cases": len(cases), "checkpoints": [c.name for c in checkpoints],
        "cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "blind": exam.best_blind_guess(cases),
    }  # fmt: skip
    yield {
        "what": "cases",
        "family": [case.family for case in cases],
        "kind": [case.turn[2] for case in cases],
        "square": bits(case.size == SQUARE for case in cases),
        "on_seam": bits(case.seam(plain_grid(case.size)).on for case in cases),
    }
    others = exam.shuffled(cases)
    for checkpoint in checkpoints:
        config = checkpoint.models["pool"].config
        offered = policies(config)
        times = first_tokens(checkpoint, offered, cases, timed)
        text = text_tokens(checkpoint.models["pool"], cases)
        for policy in offered:
            model = checkpoint.models[policy.family]
            spent = cost(config, policy, SQUARE, text)
            yield {
                "what": "policy", "checkpoint": checkpoint.name, "policy": policy.name,
                "axis": policy.axis, "tiles": spent.tiles, "tokens": spent.tokens,
                "image_flops": spent.image_flops, "prefill_flops": spent.prefill_flops,
                "first_token_s": [round(seconds, 6) for seconds in times[policy.name]],
                "right": answered(model, policy, cases),
                "other_picture": answered(model, policy, others),
                "on_own_cut": own_cuts(policy, cases),
            }  # fmt: skip


def bits(values: Iterator[bool] | Sequence[bool]) -> str:
    return "".join("01"[bool(value)] for value in values)


def _spanned(policy: Policy, cases: Sequence[TiledExample]) -> list[int]:
    return [index for index, case in enumerate(cases) if policy.spans(case.size)]


def _spread(count: int, indices: Sequence[int], values: Sequence[bool]) -> str:
    marks = ["-"] * count
    for index, value in zip(indices, values, strict=True):
        marks[index] = "01"[value]
    return "".join(marks)


def answered(model: FlashVL, policy: Policy, cases: Sequence[TiledExample]) -> str:
    """What is right of the cases: a 1 or 0 each, - where the policy cannot span the picture."""
    indices = _spanned(policy, cases)
    hits = exam.right(model, policy, [cases[index] for index in indices])
    return _spread(len(cases), indices, hits)


def own_cuts(policy: Policy, cases: Sequence[TiledExample]) -> str:
    """Which cases ask about something that lies on a cut of the policy's own grid."""
    indices = _spanned(policy, cases)
    return _spread(len(cases), indices, [own_seam(cases[i], policy).on for i in indices])


def text_tokens(model: FlashVL, cases: Sequence[TiledExample]) -> int:
    """Tokens of a question without its picture, the median."""
    assert model.tokenizer is not None
    lengths = [len(encode_prompt(model.tokenizer, case.turn[0])) for case in cases]
    return round(median(lengths))


def first_tokens(
    checkpoint: Checkpoint, offered: Sequence[Policy], cases: Sequence[TiledExample], count: int
) -> dict[str, list[float]]:
    """Seconds from the call to the first token, of `count` square pictures, one at a time; the
    policies take turns, each picture beginning with another."""
    square = [case for case in cases if case.size == SQUARE][:count]
    found: dict[str, list[float]] = {policy.name: [] for policy in offered}
    for number, case in enumerate([*square[:1], *square]):  # the first one warms caches up
        first = number % len(offered)
        for policy in (*offered[first:], *offered[:first]):
            model = exam.under(checkpoint.models[policy.family], policy)
            result = generate(model, policy.framed(case.image), case.turn[0], max_new_tokens=1)
            if number:
                found[policy.name].append(result.timings.ttft_s)
    return found


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write(lines: Iterator[dict[str, Any]], path: Path) -> None:
    """Lines as they come, under the name only once all are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if line["what"] == "policy":
                seen = [mark for mark in line["right"] if mark != "-"]
                print(f"{line['checkpoint']}  {line['policy']:<28}{seen.count('1'):>5} of "
                      f"{len(seen)}", flush=True)  # fmt: skip
    partial.replace(path)


def agreement(quick: Path, whole: Path, indices: Sequence[int]) -> list[str]:
    """What the quick run answers otherwise than the recorded one: a line for each policy that
    differs in more than CHANGED of the cases both have, or is not recorded."""
    recorded = {
        (line["checkpoint"], line["policy"]): line["right"]
        for line in study_page.read_lines(whole) if line["what"] == "policy"
    }  # fmt: skip
    faults = []
    for line in study_page.read_lines(quick):
        if line["what"] != "policy":
            continue
        name = line["checkpoint"], line["policy"]
        if name not in recorded:
            faults.append(f"{' '.join(name)}: not among the recorded results")
            continue
        before = [recorded[name][index] for index in indices]
        changed = sum(a != b for a, b in zip(before, line["right"], strict=True))
        if changed > CHANGED * len(indices):
            faults.append(f"{' '.join(name)}: {changed} of {len(indices)} answers changed")
    return faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "flashvl.train.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="folders", type=Path, nargs="+", metavar="DIR",
                        default=[find("tiny")],
                        help="checkpoints of flashvl.train.tiles; one for each seed")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a quarter of the cases")
    parser.add_argument("--page", action="store_true", help="write the page from the results only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; plots lie beside it")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    if not args.page:
        checkpoints = [Checkpoint.load(folder) for folder in args.folders]
        cases = load_cases()
        if args.quick:
            return quick(checkpoints, cases, args)
        write(run(checkpoints, cases, TIMED), args.results)
    study_page.write(args.results, args.out)
    print(f"{args.out}, after {(time.monotonic() - begin) / 60:.1f} minutes")
    return 0


def quick(
    checkpoints: list[Checkpoint], cases: list[TiledExample], args: argparse.Namespace
) -> int:
    """A quarter of the study into QUICK, and whether it repeats the recorded one."""
    indices = quick_part(cases)
    partly = QUICK / "quick.jsonl"
    write(run(checkpoints, [cases[index] for index in indices], TIMED_QUICK), partly)
    study_page.write(partly, QUICK / "quick.md")
    print(f"{QUICK / 'quick.md'}")
    if not args.results.exists():
        print(f"nothing to compare with: {args.results} is not there yet")
        return 0
    faults = agreement(partly, args.results, indices)
    print("\n".join(faults) or f"the answers are those of {args.results}")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
