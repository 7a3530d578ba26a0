"""The stitching study: intervals, labels, the page from a made-up file, a run in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")

from flashvl.config import FlashVLConfig
from flashvl.train import (
    exam,
    study,
    study_page,
    study_results,
    tiled_example,
    tiled_families,
    tiles,
)
from flashvl.train.intervals import newcombe, paired, wilson, z_of
from flashvl.train.policies import policies
from flashvl.train.seams import Seam
from flashvl.train.tiled_heldout import load_cases

POLICIES = policies(FlashVLConfig.tiny())

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3; and 8 of 10.
    ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718), (8, 10, 0.4902, 0.9433)),
)  # fmt: skip
def test_wilson_has_the_published_values(right: int, total: int, low: float, high: float) -> None:
    found = wilson(right, total)
    assert found.value == right / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_differences_have_the_published_and_the_computed_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10.
    assert newcombe(56, 70, 48, 80)[1:] == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10)[1:] == pytest.approx((0.1705, 0.8090), abs=5e-5)
    # 3 and 1 of 10 differ: 3.5 and 1.5 of 12 after Agresti and Min's half cases
    found = paired([1, 1, 1, -1, 0, 0, 0, 0, 0, 0])
    half = z_of() * (5 - 4 / 12) ** 0.5 / 12
    assert found == pytest.approx((0.2, 2 / 12 - half, 2 / 12 + half))
    assert paired([0.0] * 40).low < 0 < paired([0.0] * 40).high
    assert z_of() == pytest.approx(1.959964, abs=1e-6)
    assert z_of(among=20) == pytest.approx(3.0233, abs=1e-4)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


def made_up(on_seam: dict[str, float], cases: int = 400, plain: float = 0.9) -> list[dict]:
    """A result file in which `plain` of everything is right, but on a seam what `on_seam` says of a
    policy (by the beginning of its name)."""
    flags = [index % 2 == 0 for index in range(cases)]
    lines: list[dict[str, Any]] = [
        {"what": "study", "cases": cases, "checkpoints": ["a"], "cpu": "a processor", "threads": 2,
         "torch": "2", "blind": 0.125},
        {"what": "cases", "family": ["word", "word", "scene", "scene"] * (cases // 4),
         "kind": ["word"] * cases, "square": "1" * cases, "on_seam": study.bits(flags)},
    ]  # fmt: skip
    for number, policy in enumerate(POLICIES):
        names = sorted((n for n in on_seam if policy.name.startswith(n)), key=len)
        share = on_seam[names[-1]] if names else plain
        right = [
            index // 2 % 10 < round(10 * (share if on else plain)) for index, on in enumerate(flags)
        ]
        lines.append({
            "what": "policy", "checkpoint": "a", "policy": policy.name, "axis": policy.axis,
            "tiles": 4, "tokens": 64, "image_flops": 10**8 + number, "prefill_flops": 10**7,
            "first_token_s": [0.004, 0.002, 0.003], "right": study.bits(right),
            "other_picture": study.bits([n % 8 == 0 for n in range(cases)]),
            "on_own_cut": study.bits(flags),
        })  # fmt: skip
    return lines


def page(lines: list[dict], tmp_path: Path) -> str:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study_page.write(path, tmp_path / "stitching.md")
    return (tmp_path / "stitching.md").read_text()


SEAMS_COST = {"plain": 0.5, "overlap 0": 0.5, "one tile": 0.3}


def test_the_page_has_the_numbers_of_the_file(tmp_path: Path) -> None:
    text = page(made_up(SEAMS_COST), tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| plain tiles | 4 |"))
    # 100 of 200 on a seam, 180 of 200 off it
    assert row == (
        "| plain tiles | 4 | 64 | 110 | 3.00 | 50.0 (43.1-56.9) | 90.0 (85.1-93.4) | "
        "70.0 (65.3-74.3) | 12.5 |"
    )
    assert "400 held-out questions" in text and "12.5 %" in text
    assert "one checkpoint" in text and "a processor, 2 threads" in " ".join(text.split())
    for policy in POLICIES:
        assert f"| {policy.name} |" in text
    for plot in (study_page.SEAMS, study_page.COSTS):
        assert f"({plot})" in text and "<svg" in (tmp_path / plot).read_text()
    before = [(tmp_path / plot).read_bytes() for plot in (study_page.SEAMS, study_page.COSTS)]
    assert page(made_up(SEAMS_COST), tmp_path) == text
    assert before == [(tmp_path / p).read_bytes() for p in (study_page.SEAMS, study_page.COSTS)]


@pytest.mark.parametrize(
    ("shares", "sentence"),
    (
        (SEAMS_COST, "**Stitching helps on the seams (overlap 1 and 2 and 4), and no loss"),
        ({"": 0.5}, "**Stitching overlapping tiles does not help here on the seams.**"),
        ({"": 0.5, "overlap 1": 0.2}, "seams.** With as many tiles it even costs there."),
        ({"": 0.5, **{f"overlap 2 {r}, 9": 0.9 for r in study_results.RULES}},
         "**Stitching helps on the seams only where more tiles keep the resolution** (overlap 2)"),
    ),
)  # fmt: skip
def test_the_conclusion_is_what_the_numbers_say(
    tmp_path: Path, shares: dict[str, float], sentence: str
) -> None:
    text = page(made_up(shares), tmp_path)
    assert sentence in text
    assert "Seams cost: under plain tiles" in text


def test_a_loss_off_the_seams_is_told(tmp_path: Path) -> None:
    lines = made_up(SEAMS_COST)
    for line in lines:
        if line["what"] == "policy" and line["axis"] == "overlap" and "0" not in line["policy"]:
            line["right"] = "".join(
                mark if index % 2 == 0 or index % 3 else "0"
                for index, mark in enumerate(line["right"])
            )
    text = page(lines, tmp_path)
    assert "(overlap 1 and 2 and 4) and costs off them** (overlap 1 and 2 and 4)" in text


def test_flipped_seam_labels_turn_the_conclusion_around(tmp_path: Path) -> None:
    lines = made_up(SEAMS_COST)
    lines[1]["on_seam"] = lines[1]["on_seam"].translate(str.maketrans("01", "10"))
    text = page(lines, tmp_path)
    assert "Seams cost" not in text and "read better than what does not" in text
    assert "does not help here on the seams" in text


def wrong_labels(cases: list[tiled_example.TiledExample], on_seam: str) -> list[int]:
    """Cases whose label is not what looking up the owner of every sixteenth pixel gives."""
    wrong = []
    for index, case in enumerate(cases):
        owner = tiled_example.plain_grid(case.size).owner().numpy()
        cut = False
        for box in case.boxes:
            rows = np.arange(box.top, box.bottom - 1e-6, 1 / 16) // tiled_example.PATCH
            cols = np.arange(box.left, box.right - 1e-6, 1 / 16) // tiled_example.PATCH
            cut |= len(np.unique(owner[np.ix_(rows.astype(int), cols.astype(int))])) > 1
        if cut != (on_seam[index] == "1"):
            wrong.append(index)
    return wrong


def test_a_flipped_seam_label_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = load_cases()[:700:7]  # on a seam and off it in turn: an even number, no palindrome

    def labels() -> str:
        return next(line["on_seam"] for line in study.run([], cases, 0) if line["what"] == "cases")

    assert {"0", "1"} == set(labels()) and wrong_labels(cases, labels()) == []
    real = tiled_example.TiledExample.seam

    def flipped(self: tiled_example.TiledExample, grid: Any) -> Seam:
        found = real(self, grid)
        return Seam(0.0 if found.on else 1.0, found.share, found.whole)

    monkeypatch.setattr(tiled_example.TiledExample, "seam", flipped)
    assert wrong_labels(cases, labels()) == list(range(len(cases)))


def test_several_checkpoints_count_as_their_mean_and_not_as_more_cases() -> None:
    lines = made_up({})
    second = [{**line, "checkpoint": "b", "right": "0" * 400} for line in lines[2:]]
    results = study_results.Results([*lines, *second])
    row = results.rows["plain tiles"]
    found = results.share(row, results.all())
    assert found == wilson(180, 400)


def test_the_control_gives_every_question_another_picture_of_its_size() -> None:
    cases = load_cases()
    others = exam.shuffled(cases)
    for case, other in zip(cases, others, strict=True):
        assert other.turn == case.turn and other.size == case.size
        assert not np.array_equal(other.image, case.image)


def test_the_quick_part_is_balanced_and_compared_case_by_case(tmp_path: Path) -> None:
    cases = load_cases()
    part = study.quick_part(cases)
    assert len(part) == 200
    for family in tiled_families.FAMILIES:
        chosen = [cases[index] for index in part if cases[index].family == family]
        on = sum(case.seam(tiled_example.plain_grid(case.size)).on for case in chosen)
        assert (len(chosen), on) == (50, 25)
    lines = made_up({})
    indices = list(range(0, 400, 2))
    small = [
        {**line, "right": "".join(line["right"][i] for i in indices)}
        if line["what"] == "policy" else line for line in lines
    ]  # fmt: skip
    files = tmp_path / "whole.jsonl", tmp_path / "quick.jsonl"
    for path, content in zip(files, (lines, small), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    assert study.agreement(files[1], files[0], indices) == []
    small[3]["right"] = small[3]["right"].translate(str.maketrans("01", "10"))
    files[1].write_text("".join(json.dumps(line) + "\n" for line in small))
    (fault,) = study.agreement(files[1], files[0], indices)
    assert "200 of 200 answers changed" in fault


def test_a_study_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of no training, two pictures, every policy: the file, then the page of it."""
    trained = tmp_path / "checkpoint"
    tiles.Trainer(tmp_path, seed=0, workers=0, cases=[]).export(trained)
    shipped = load_cases()
    cases = [
        next(case for case in shipped if (case.size == tiled_example.BIG) == big) for big in (1, 0)
    ]
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(study, "load_cases", lambda: cases)
    monkeypatch.setattr(study, "QUICK", tmp_path / "quick")
    where = ["--results", str(path), "--out", str(tmp_path / "stitching.md")]
    assert study.main(["--from", str(trained), *where]) == 0
    lines = study_page.read_lines(path)
    assert [line["policy"] for line in lines[2:]] == [policy.name for policy in POLICIES]
    for line, policy in zip(lines[2:], POLICIES, strict=True):
        spans = "01" if policy.spans(cases[1].size) else "-"
        assert line["right"][0] in "01" and line["right"][1] in spans
        assert line["first_token_s"][0] > 0 and line["image_flops"] > 0
        assert line["tiles"] == {"one tile": 1, "resolution": 9}.get(line["axis"], 4)
    assert "# What stitching and compression buy" in (tmp_path / "stitching.md").read_text()

    monkeypatch.setattr(study, "run", lambda *_: iter(lines))
    assert study.main(["--from", str(trained), "--quick", *where]) == 0
    lines[4]["right"] = lines[4]["right"].translate(str.maketrans("01", "10"))
    assert study.main(["--from", str(trained), "--quick", *where]) == 1
    (tmp_path / "stitching.md").unlink()
    assert study.main(["--page", *where]) == 0 and (tmp_path / "stitching.md").exists()
