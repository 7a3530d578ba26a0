"""The command line: answers on stdout, one line on stderr for whatever a user gets wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flashvl import FlashVL, cli, demo
from flashvl.generate import Result, Timings
from flashvl.train import heldout
from tests.model.toy_model import picture, toy_model
from tests.model.toy_text import write_pieces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the toy model, with a picture beside it."""
    here = tmp_path_factory.mktemp("checkpoint")
    toy_model(here).save_pretrained(here)
    write_pieces(here)
    Image.fromarray(picture(0)).save(here / "picture.png")
    return here


def ask(
    folder: Path, *more: str, image: str = "picture.png", question: str = "hello?"
) -> list[str]:
    common = ["--checkpoint", str(folder), "--dtype", "fp32", "--max-new-tokens", "6"]
    return ["ask", str(folder / image), question, *common, *more]


def test_the_answer_streams_to_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(ask(folder)) == 0
    shown = capsys.readouterr()
    model = FlashVL.from_pretrained(folder, dtype=torch.float32)
    expected = model.generate(folder / "picture.png", "hello?", max_new_tokens=6)
    assert shown.out == expected.text + "\n"
    assert shown.err == ""
    assert len(expected.text) > 2


def test_json_has_answer_and_timings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(ask(folder)) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    assert cli.main(ask(folder, "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == text
    assert answer["finish_reason"] in ("eos", "length")
    assert answer["timings"]["ttft_s"] >= answer["timings"]["prefill_s"] > 0


def test_backend_weights_and_stdin(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(ask(folder, "--backend", "torch", "--weights", "int8"))
    packed = capsys.readouterr().out
    data = (folder / "picture.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    arguments = ask(folder, "--backend", "torch", "--weights", "int8")
    arguments[1] = "-"
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == packed


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": "none.png"}, r"none\.png: no such file"),
        ({"image": "config.json"}, r"config\.json: is not an image"),
        ({"question": "  "}, "asks nothing"),
        ({"question": "x" * 300}, r"max_positions is 256; shorten it"),
        ({"more": ["--max-new-tokens", "0"]}, "max_new_tokens must be 1 or more"),
        ({"more": ["--backend", "quantum"]}, "backend: got 'quantum'; needs auto"),
        ({"more": ["--backend", "cuda"]}, "cuda"),
        ({"more": ["--device", "toaster"]}, "device is 'toaster'"),
        ({"more": ["--checkpoint", "/nowhere/at/all"]}, "/nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], match: str
) -> None:
    given = {"image": "picture.png", "question": "hello?"} | change
    more = given.pop("more", [])
    assert cli.main(ask(folder, *more, **given)) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(rf"flashvl: error: [^\n]*{match}[^\n]*\n", shown.err), shown.err
    assert shown.out == ""


def test_a_broken_checkpoint_is_one_line_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "vocab.json", "merges.txt", "added_tokens.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    arguments = ask(folder, "--checkpoint", str(tmp_path))
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("flashvl: error: ") and shown.count("\n") == 1
    assert "model.safetensors" in shown


def test_the_real_process_ends_with_status_2_and_no_traceback(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flashvl.cli", *ask(folder, image="none.png")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no such file" in done.stderr


def test_a_terminal_without_utf8_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    cli._write("aé🙂b")
    assert raw.getvalue() == b"a??b"


def test_info_counts_parameters_without_loading_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", "--checkpoint", str(folder), "--dtype", "fp32", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    model = FlashVL.from_pretrained(folder, dtype=torch.float32, layout="rows")
    count = sum(p.numel() for p in model.parameters())
    assert facts["parameters"]["total"] == count
    assert facts["parameters"]["total"] == sum(
        facts["parameters"][part] for part in ("vision", "adapter", "decoder")
    )
    assert facts["bytes in fp32"] == {"weights": 4 * count, "cache per token": 2 * 2 * 64 * 4}
    assert facts["decoder"]["vocab"] == 280
    assert "torch" in facts["backends"]["cpu"]
    size = (folder / "model.safetensors").stat().st_size
    assert facts["checkpoint"]["model.safetensors"] == size
    assert cli.main(["info", "--checkpoint", str(folder)]) == 0
    text = capsys.readouterr().out
    assert f"total    {count:,}" in text and "bytes in bf16" in text


def answered(text: str) -> Result:
    return Result(text, [1], Timings(0.001, 0.002, 0.003, 0.006, 0.01, 500.0, 1), "eos", 9)


def test_the_demo_marks_right_and_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [
        demo.Question(Path("a.png"), "How many?", "3"),
        demo.Question(Path("long-name.png"), "Which colour is it?", "red"),
    ]

    def fake(model: Any, image: Path, question: str, stream: Any, **_: Any) -> Result:
        text = "3" if image.name == "a.png" else "blue"
        stream(text)
        return answered(text)

    monkeypatch.setattr(demo, "generate", fake)
    out: list[str] = []
    assert demo.ask_each(None, questions, out.append) == 1  # type: ignore[arg-type]
    lines = "".join(out).splitlines()
    assert lines[1] == "  a.png          How many?            3  right"
    assert lines[2] == "  long-name.png  Which colour is it?  blue  wrong: expected red"
    assert lines[3] == "  1 of 2 as expected"


def test_the_demo_scores_against_both_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(kind: str, level: int, answer: str) -> heldout.Case:
        return heldout.Case(np.full((4, 4, 3), level, np.uint8), "?", answer, kind)

    cases = [case("number", n, str(n)) for n in range(4)] + [case("shape", 9, "star")] * 2

    def score(model: Any, asked: list[heldout.Case]) -> dict[str, tuple[int, int]]:
        """A model that reads the picture's grey level, but knows no star."""
        right = sum(str(c.image[0, 0, 0]) == c.answer for c in asked if c.kind == "number")
        return {"number": (right, 4), "shape": (0, 2)}

    monkeypatch.setattr(heldout, "score", score)
    out: list[str] = []
    demo.score_cases(None, cases, out.append)  # type: ignore[arg-type]
    rows = [line.split() for line in "".join(out).splitlines()]
    assert rows[1] == ["number", "4", "4", "100.0", "0.0", "25.0"]
    assert rows[2] == ["shape", "0", "2", "0.0", "0.0", "100.0"]
    assert rows[3] == ["all", "4", "6", "66.7", "0.0", "50.0"]


def test_fresh_questions_are_of_both_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[heldout.Case]] = []
    monkeypatch.setattr(demo, "ask_each", lambda *_: 0)
    monkeypatch.setattr(demo, "time_backends", lambda *_: None)
    monkeypatch.setattr(demo, "score_cases", lambda model, cases, write: asked.append(cases))
    out: list[str] = []
    demo.run(None, out.append, "torch", fresh=5)  # type: ignore[arg-type]
    assert [len(cases) for cases in asked] == [200, 800, 5, 8]
    assert {"word", "handwritten"} <= {case.kind for case in asked[3]}
    shipped = {case.image.tobytes() for case in (*asked[0], *asked[1])}
    assert not any(case.image.tobytes() in shipped for case in (*asked[2], *asked[3]))
    assert "8 about pictures of several tiles drawn now" in "".join(out)


def test_the_demo_times_every_backend(folder: Path) -> None:
    model = FlashVL.from_pretrained(folder, dtype=torch.float32)
    questions = [demo.Question(folder / "picture.png", "hello?", "")] * 3
    out: list[str] = []
    demo.time_backends(model, questions, out.append, ["torch"])
    title, header, row = "".join(out).splitlines()
    assert "float32: median of 1 pictures" in title
    assert len(header) == len(row)
    name, *numbers = row.split()
    image, vision, prefill, first, rate = map(float, numbers)
    assert name == "torch"
    assert first == pytest.approx(image + vision + prefill, abs=1)
    assert rate > 0


def test_the_shipped_questions_point_at_shipped_pictures() -> None:
    questions = demo.load_questions()
    assert len(questions) >= 10
    for q in questions:
        assert q.image.is_file() and q.question.endswith((".", "?")) and q.answer
