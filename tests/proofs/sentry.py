"""sentryward's answers: whether every schedule of a launch synchronises well and has no race, and
whether what it computes is equal to a PyTorch function."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proofs.ptx import Question

EQUAL_SECONDS = 120
"""For a proof of equality, at most; those that succeed take a few, some of them half a minute where
others use the cores."""


@dataclass(frozen=True)
class Verdict:
    """result: race_free, or why not, in sentryward's word. reason: its diagnostic's code."""

    result: str
    reason: str = ""


def unavailable() -> str | None:
    """The reason nothing can be proven here, or None."""
    if importlib.util.find_spec("sentryward") is None:
        return "sentryward is not installed; make setup tries to"
    if shutil.which("nvcc") is None:
        return "nvcc is not on PATH; install the CUDA toolkit to compile the kernels"
    return None


def races(question: Question, folder: Path, seconds: int) -> Verdict:
    """Whether every schedule of the launch synchronises well and orders its accesses; "timeout" of
    what takes longer than `seconds`."""
    import sentryward

    ptx, config = folder / "question.ptx", folder / "input.json"
    ptx.write_text(question.ptx)
    config.write_text(json.dumps(question.config))
    answer = sentryward.verify(ptx, input=config, timeout_seconds=seconds)
    found = answer.get("diagnostics") or [{}]
    return Verdict(answer["result"], str(found[0].get("code", "")))


def equal(question: Question, reference: str, binding: dict[str, Any], folder: Path) -> Verdict:
    """Whether the launch also computes, in real numbers, what the Python text `reference` does."""
    import sentryward

    paths = [
        folder / name for name in ("question.ptx", "input.json", "reference.py", "binding.json")
    ]
    texts = question.ptx, json.dumps(question.config), reference, json.dumps(binding)
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    answer = sentryward.verify(
        paths[0],
        input=paths[1],
        reference=paths[2],
        reference_binding=paths[3],
        timeout_seconds=EQUAL_SECONDS,
    )
    found = answer.get("diagnostics") or [{}]
    return Verdict(answer["result"], str(found[0].get("code", "")))
