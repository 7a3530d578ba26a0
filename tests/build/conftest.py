"""Shared by the tests of the build: the source tree, its tools, and the built library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashvl_kernels import extension

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tools/ importable, as the build frontend does."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.fixture
def library() -> Path:
    """The built library. `make test` requires it; elsewhere its absence is a skip that says why."""
    if extension.EXTENSION.loaded:
        return Path(extension.EXTENSION.path)
    if os.environ.get("FLASHVL_REQUIRE_EXT", "0") not in ("", "0"):
        pytest.fail(f"the CPU extension is required: {extension.EXTENSION.reason}")
    pytest.skip(f"needs the CPU extension: {extension.EXTENSION.reason}")


@pytest.fixture
def run_python(tmp_path: Path) -> Run:
    """Run code in a fresh interpreter, away from the source tree, with the given environment."""

    def run(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLASHVL_")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "model")])
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env={**inherited, "PYTHONPATH": path, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
