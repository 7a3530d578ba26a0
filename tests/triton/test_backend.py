"""The triton backend from outside: found lazily, refused with a reason one can act on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import flashvl_kernels
from flashvl_kernels import doctor, triton
from flashvl_kernels.backends import BackendError, resolve, why_not
from flashvl_kernels.ops.rms_norm import SPEC

ROOT = Path(__file__).resolve().parents[2]
CALL = (torch.ones(2, 8), torch.ones(8), 1e-6, None)


def forget() -> None:
    """What was found out about this machine and is kept."""
    triton.missing.cache_clear()
    triton.has_gpu.cache_clear()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """A function that pretends another version of triton, or none, is installed."""

    def install(version: str | None) -> None:
        monkeypatch.setattr(triton, "version", lambda: version)
        forget()

    yield install
    forget()


def test_importing_the_package_imports_no_triton() -> None:
    code = "import sys, flashvl_kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_package_works_where_triton_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, flashvl_kernels as f\n"
        "f.rms_norm(torch.ones(2, 8), torch.ones(8))\n"
        "with f.backend('triton,torch'):\n"
        "    print(f.explain('rms_norm', torch.ones(2, 8), torch.ones(8)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "not triton: triton is not installed; pip install triton" in done.stdout


def test_without_a_gpu_the_reason_says_so(pretend: Callable[[str | None], None]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    pretend("3.8.0")
    reason = why_not(SPEC, "triton", CALL)
    assert reason is not None and "no CUDA or ROCm GPU" in reason
    with (
        pytest.raises(BackendError, match="no CUDA or ROCm GPU"),
        flashvl_kernels.backend("triton"),
    ):
        flashvl_kernels.rms_norm(*CALL[:2])


def test_without_triton_every_way_in_says_how_to_get_it(
    pretend: Callable[[str | None], None],
) -> None:
    pretend(None)
    assert why_not(SPEC, "triton", CALL) == "triton is not installed; pip install triton"
    assert SPEC.kernels["triton"](*CALL) == "triton is not installed; pip install triton"
    with pytest.raises(BackendError, match="pip install triton"):
        resolve(SPEC, "triton")
    (line,) = (f for f in doctor.examine() if f.name == "triton")
    assert line.ok and "pip install triton" in line.text


def test_with_a_gpu_the_tensors_must_be_on_it(
    pretend: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("3.8.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert triton.unavailable("cuda") == triton.missing()
    assert triton.unavailable("cpu") is not None and "on cpu" in str(triton.unavailable("cpu"))


def test_an_old_triton_is_refused(pretend: Callable[[str | None], None]) -> None:
    pretend("3.1.0+git")
    assert "need 3.4 or newer" in str(triton.missing())


def test_a_row_too_long_for_registers_is_refused() -> None:
    if triton.missing():
        pytest.skip(str(triton.missing()))
    wide = torch.empty(2, 40000, device="meta"), torch.empty(40000, device="meta"), 1e-6, None
    assert "40000 channels" in str(SPEC.kernels["triton"](*wide))
