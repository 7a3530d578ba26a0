"""Held-out questions: 200 fixed ones shipped with the package, more on the fly, and their control.

The handwritten digits in them are never trained on, and their random keys never meet the training
stream's. Answers are balanced, so guessing without the picture is right only by chance; `shuffled`
gives every question another case's picture to show just that.

The shipped pictures lie in one JPEG sheet a canvas size (4:4:4; canvas sides are multiples of the
8-px block, so cells don't bleed), because sensor noise makes PNG four times as large.
`python -m flashvl.train.heldout` draws them again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashvl.train.canvas import (
    COLOURS,
    SHAPES,
    SIZE_SHARES,
    SIZES,
    SQUARE,
    TALL,
    WIDE,
    Example,
)
from flashvl.train.dataset import HELD_OUT
from flashvl.train.digits import draw_number
from flashvl.train.scenes import draw_scene

FOLDER = Path(__file__).parents[1] / "assets" / "heldout"
FIXED_SEED = 9498
FIXED_CASES = 200
QUALITY = 90
COLUMNS = 10  # cells a sheet row
SHEETS = {"wide": WIDE, "square": SQUARE, "tall": TALL}
LONGEST_ANSWER = 12  # tokens; 8 letters and the end are 9

# 40 % numbers, 15 % each of the rest, as the 200 fixed questions
PATTERN = ("number", "colour", "number", "shape", "count", "relation", "number", "colour",
           "number", "shape", "number", "count", "relation", "number", "colour", "number",
           "shape", "number", "count", "relation")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """One picture (uint8 [H, W, 3]), one question, the answer a person would give."""

    image: np.ndarray
    question: str
    answer: str
    kind: str


def _wanted(kind: str, turn: int) -> str:
    """The answer of the turn-th scene question of a kind: all answers equally often."""
    answers: dict[str, Sequence[str]] = {
        "colour": COLOURS,
        "shape": SHAPES,
        "count": "012345",
        "relation": ("yes", "no"),
    }
    return answers[kind][turn % len(answers[kind])]


def _draw(seed: int, index: int, kind: str, turn: int) -> Example:
    rng = np.random.default_rng((HELD_OUT, seed, index))
    size = SIZES[int(rng.choice(len(SIZES), p=SIZE_SHARES))]
    if kind == "number":
        length = 1 + turn % 4
        if length > 2:
            size = WIDE
        return draw_number(rng, size, length, held_out=True)
    wanted = _wanted(kind, turn)
    if kind == "count" and int(wanted) > 3 and size == SQUARE:
        size = WIDE
    count = int(wanted) if kind == "count" else None
    while True:  # one draw in 2 to 6 has the wanted answer
        example = draw_scene(rng, size, kind, count)
        _, answer, asked = example.turns[0]
        if (answer, asked) == (wanted, kind):
            return example


def make_heldout(n: int = FIXED_CASES, seed: int = 0) -> list[Case]:
    """n fresh held-out cases, 40 % numbers (lengths 1 to 4 in turn) and 15 % of each scene kind.

    Needs scikit-learn. The shipped cases are seed FIXED_SEED.
    """
    turns: Counter[str] = Counter()
    cases = []
    for index in range(n):
        kind = PATTERN[index % len(PATTERN)]
        example = _draw(seed, index, kind, turns[kind])
        question, answer, _ = example.turns[0]
        cases.append(Case(example.image, question, answer, kind))
        turns[kind] += 1
    return cases


def write_heldout(folder: Path = FOLDER) -> None:
    """Draw the fixed cases and write their sheets and cases.json."""
    cells: dict[str, list[np.ndarray]] = {name: [] for name in SHEETS}
    names = {size: name for name, size in SHEETS.items()}
    records = []
    for case in make_heldout(FIXED_CASES, FIXED_SEED):
        sheet = names[case.image.shape[:2]]
        records.append(
            {
                "sheet": sheet,
                "cell": len(cells[sheet]),
                "kind": case.kind,
                "question": case.question,
                "answer": case.answer,
            }
        )
        cells[sheet].append(case.image)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (height, width) in SHEETS.items():
        rows = -(-len(cells[name]) // COLUMNS)
        sheet_pixels = np.full((rows * height, COLUMNS * width, 3), 255, np.uint8)
        for cell, image in enumerate(cells[name]):
            top, left = cell // COLUMNS * height, cell % COLUMNS * width
            sheet_pixels[top : top + height, left : left + width] = image
        Image.fromarray(sheet_pixels).save(
            folder / f"{name}.jpg", quality=QUALITY, subsampling=0, optimize=True
        )
    lines = ",\n".join(json.dumps(record) for record in records)
    (folder / "cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load_heldout(folder: Path = FOLDER) -> list[Case]:
    """The 200 shipped cases; needs Pillow only."""
    sheets = {}
    for name in SHEETS:
        with Image.open(folder / f"{name}.jpg") as picture:
            sheets[name] = np.asarray(picture.convert("RGB"))
    cases = []
    for record in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        height, width = SHEETS[record["sheet"]]
        top = record["cell"] // COLUMNS * height
        left = record["cell"] % COLUMNS * width
        image = sheets[record["sheet"]][top : top + height, left : left + width].copy()
        cases.append(Case(image, record["question"], record["answer"], record["kind"]))
    return cases


def shuffled(cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """The control: every question with the picture of another case of its kind.

    The pictures of a kind move along one random cycle, so none keeps its own.
    """
    rng = np.random.default_rng((HELD_OUT, seed))
    result = list(cases)
    for kind in sorted({case.kind for case in cases}):
        members = [i for i, case in enumerate(cases) if case.kind == kind]
        cycle = [members[i] for i in rng.permutation(len(members))]
        for here, there in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            result[here] = replace(cases[here], image=cases[there].image)
    return result


def chance(cases: Sequence[Case]) -> dict[str, float]:
    """Per kind, how often the kind's most frequent answer is right: the best a blind guess does."""
    answers: dict[str, Counter[str]] = {}
    for case in cases:
        answers.setdefault(case.kind, Counter())[case.answer] += 1
    return {kind: max(seen.values()) / seen.total() for kind, seen in answers.items()}


Answer = Callable[[Any, Sequence[Case]], list[str]]


def ask(model: Any, cases: Sequence[Case]) -> list[str]:
    """The model's greedy answers to a batch of cases."""
    from flashvl.generate import generate_batch

    requests = [([case.image], [{"role": "user", "content": case.question}]) for case in cases]
    results = generate_batch(model, requests, max_new_tokens=LONGEST_ANSWER)
    return [result.text for result in results]


def score(
    model: Any, cases: Sequence[Case], batch: int = 32, answer: Answer = ask
) -> dict[str, tuple[int, int]]:
    """Exact matches of the stripped text: kind -> (right, total). answer: how to ask the model."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for start in range(0, len(cases), batch):
        group = cases[start : start + batch]
        for case, text in zip(group, answer(model, group), strict=True):
            right[case.kind] += text.strip() == case.answer
            total[case.kind] += 1
    return {kind: (right[kind], total[kind]) for kind in total}


if __name__ == "__main__":
    write_heldout()
    for path in sorted(FOLDER.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")
