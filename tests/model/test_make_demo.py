"""The pictures of the demo: answers true, texts held out, as the script draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recount import recount

from flashvl.train import make_demo, printed
from flashvl.train.canvas import Mark

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")


def demo_entries() -> Iterator[tuple[str, np.ndarray, dict[str, str]]]:
    for entry in json.loads((make_demo.FOLDER / "demo.json").read_text(encoding="utf-8")):
        with Image.open(make_demo.FOLDER / entry["image"]) as picture:
            pixels = np.asarray(picture)
        yield entry["image"], pixels, {t["question"]: t["answer"] for t in entry["turns"]}


def test_demo_answers_are_right_and_pictures_need_the_resize() -> None:
    entries = list(demo_entries())
    assert 6 <= len(entries) <= 10
    written = {f"{row[0]}.png": row[3] for row in make_demo.NUMBERS}
    things = {f"{row[0]}.png": row[4] for row in make_demo.SCENES}
    prices = {f"{row[0]}.png": dict(row[7]) for row in make_demo.RECEIPTS}
    signs = {f"{row[0]}.png": row[3] for row in make_demo.SIGNS}
    for name, pixels, turns in entries:
        assert min(pixels.shape[:2]) > 2 * 64, name
        for question, answer in turns.items():
            if name in things:
                marks = tuple(
                    Mark(shape, colour, top, left, top + side, left + side)
                    for colour, shape, top, left, side in things[name]
                )
                assert recount(question, marks, pixels.shape[:2]) == answer
            elif name in prices:
                (price,) = (p for goods, p in prices[name].items() if f"of {goods}?" in question)
                assert answer == price and printed.is_held_out(price)
            elif name in signs:
                assert answer == signs[name] and printed.is_held_out(answer)
            else:
                text = written[name]
                assert answer == (str(len(text)) if "How many" in question else text)


def test_demo_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    make_demo.write_demo(tmp_path)
    for name, pixels, _ in demo_entries():
        with Image.open(tmp_path / name) as drawn:
            assert abs(np.asarray(drawn, int) - pixels).max() <= 2, name
