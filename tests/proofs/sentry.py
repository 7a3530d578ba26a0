"""sentryward's answers: whether every schedule of a launch synchronises well and has no race."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.proofs.ptx import Question


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
