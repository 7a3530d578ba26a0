"""Fixed held-out questions on pictures that need tiles: 200 of each family, half on a seam.

Handwritten digits are of the held-out 500; printed words, numbers and prices of three characters
or more are of the texts that no training picture shows. Pictures lie in JPEG sheets, one a family
and picture size, as heldout.py's do (sensor noise makes PNG four times as large); cases are JSON
lines. `python -m flashvl.train.tiled_heldout` draws them again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flashvl.train.dataset import HELD_OUT
from flashvl.train.heldout import Case
from flashvl.train.seams import Box
from flashvl.train.tiled import draw
from flashvl.train.tiled_example import PICTURE_SHARES, PICTURES, TiledExample
from flashvl.train.tiled_families import FAMILIES

FOLDER = Path(__file__).parents[1] / "assets" / "heldout_tiles"
FIXED_SEED = 7407
CASES = 200  # a family
QUALITY = 80
COLUMNS = 8
MOST_BYTES = 4_000_000


def make_cases(family: str, n: int = CASES, seed: int = 0) -> list[TiledExample]:
    """n held-out examples of a family, on and off a seam of plain tiles in turn."""
    cases = []
    for index in range(n):
        rng = np.random.default_rng((HELD_OUT, FAMILIES.index(family), seed, index))
        size = PICTURES[int(rng.choice(len(PICTURES), p=PICTURE_SHARES))]
        cases.append(draw(rng, size, family, on_seam=index % 2 == 0, held_out=True))
    return cases


def make_all_cases(n: int, seed: int) -> list[TiledExample]:
    """n held-out examples of each family."""
    return [case for family in FAMILIES for case in make_cases(family, n, seed)]


def _name(family: str, size: tuple[int, int]) -> str:
    return f"{family}-{size[0]}x{size[1]}.jpg"


def write_cases(folder: Path = FOLDER, n: int = CASES, seed: int = FIXED_SEED) -> None:
    """Draw the fixed cases and write their sheets and cases.jsonl."""
    cells: dict[str, list[np.ndarray]] = defaultdict(list)
    lines = []
    for family in FAMILIES:
        for case in make_cases(family, n, seed):
            sheet = _name(family, case.size)
            question, answer, kind = case.turn
            record = {
                "sheet": sheet, "cell": len(cells[sheet]), "size": case.size, "family": family,
                "kind": kind, "question": question, "answer": answer,
                "boxes": [list(map(int, box)) for box in case.boxes],
            }  # fmt: skip
            lines.append(json.dumps(record) + "\n")
            cells[sheet].append(case.image)
    folder.mkdir(parents=True, exist_ok=True)
    for sheet, images in cells.items():
        height, width = images[0].shape[:2]
        rows = -(-len(images) // COLUMNS)
        pixels = np.full((rows * height, COLUMNS * width, 3), 255, np.uint8)
        for cell, image in enumerate(images):
            top, left = cell // COLUMNS * height, cell % COLUMNS * width
            pixels[top : top + height, left : left + width] = image
        Image.fromarray(pixels).save(folder / sheet, quality=QUALITY, subsampling=0, optimize=True)
    (folder / "cases.jsonl").write_text("".join(lines), encoding="utf-8")


def load_cases(folder: Path = FOLDER) -> list[TiledExample]:
    """The shipped cases; needs Pillow only."""
    sheets: dict[str, np.ndarray] = {}
    cases = []
    for line in (folder / "cases.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        name = record["sheet"]
        if name not in sheets:
            with Image.open(folder / name) as picture:
                sheets[name] = np.asarray(picture.convert("RGB"))
        height, width = record["size"]
        top = record["cell"] // COLUMNS * height
        left = record["cell"] % COLUMNS * width
        image = sheets[name][top : top + height, left : left + width].copy()
        turn = (record["question"], record["answer"], record["kind"])
        boxes = tuple(Box(*box) for box in record["boxes"])
        cases.append(TiledExample(image, turn, record["family"], boxes))
    return cases


def as_cases(examples: Sequence[TiledExample]) -> list[Case]:
    """The same questions as heldout.py has them."""
    return [Case(example.image, *example.turn) for example in examples]


if __name__ == "__main__":
    write_cases()
    for path in sorted(FOLDER.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")
