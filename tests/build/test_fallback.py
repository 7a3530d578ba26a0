"""Without the extension the package imports, computes, and says what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

DOCTOR = """
import sys, torch, flashvl_kernels
from flashvl_kernels import extension
from flashvl_kernels.cli import main
status = main(["doctor"])
y, _ = flashvl_kernels.rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), 1e-12)
torch.testing.assert_close(y, torch.tensor([[3.0, 4.0]]) / 12.5**0.5)
assert extension.has("rms_norm") == extension.EXTENSION.loaded == (status == 0)
print("computed by level", extension.cpu_level(), "from", flashvl_kernels.__file__)
sys.exit(status)
"""


def test_a_missing_library_is_named(run_python) -> None:
    done = run_python(DOCTOR, FLASHVL_EXTENSION="/nonexistent/lib.so")
    assert done.returncode == 1, done.stderr
    assert "FLASHVL_EXTENSION names /nonexistent/lib.so, which does not exist" in done.stdout
    assert "-> correct FLASHVL_EXTENSION or unset it" in done.stdout
    assert "computed by level none" in done.stdout


def test_a_file_that_is_no_library_is_named(tmp_path: Path, run_python) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    done = run_python(DOCTOR, FLASHVL_EXTENSION=str(broken))
    assert done.returncode == 1, done.stderr
    assert "the library does not load into torch" in done.stdout


@pytest.fixture
def installed_copy(root: Path, tmp_path: Path) -> Path:
    """The package as an install without a compiler leaves it."""
    unbuilt = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    site = tmp_path / "site"
    shutil.copytree(root / "flashvl_kernels", site / "flashvl_kernels", ignore=unbuilt)
    return site


def test_doctor_prints_why_the_build_failed(installed_copy: Path, run_python) -> None:
    record = {"built": False, "reason": "no C++ compiler was found", "log": ["c++: not found"]}
    (installed_copy / "flashvl_kernels" / "_build.json").write_text(json.dumps(record))
    done = run_python(DOCTOR, PYTHONPATH=str(installed_copy))
    assert done.returncode == 1, done.stderr
    assert "the CPU extension was not built: no C++ compiler was found" in done.stdout
    assert "FLASHVL_REQUIRE_EXT=1 pip install" in done.stdout
    assert "c++: not found" in done.stdout
    assert f"computed by level none from {installed_copy}" in done.stdout


def test_a_damaged_record_breaks_nothing(installed_copy: Path, run_python) -> None:
    (installed_copy / "flashvl_kernels" / "_build.json").write_text("{")
    done = run_python(DOCTOR, PYTHONPATH=str(installed_copy))
    assert done.returncode == 1, done.stderr
    assert "the CPU extension is not built" in done.stdout
    assert "computed by level none" in done.stdout


def test_doctor_is_content_with_the_extension(library: Path, run_python) -> None:
    done = run_python(DOCTOR)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"loaded from {library}" in done.stdout


BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import build_extension
build_extension.build(Path(sys.argv[2]))
"""


def build(run_python, root: Path, package: Path, **environment: str):
    (package / "libflashvl_kernels.so").write_text("left by an earlier install")
    return run_python(BUILD, str(root / "tools"), str(package), **environment)


def test_a_failed_build_leaves_a_reason_and_no_stale_library(
    root: Path, tmp_path: Path, run_python
) -> None:
    done = build(run_python, root, tmp_path, CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "the CPU extension was NOT built" in done.stderr
    record = json.loads((tmp_path / "_build.json").read_text())
    assert record["built"] is False
    assert "/bin/false" in record["reason"]
    assert record["log"]
    assert not (tmp_path / "libflashvl_kernels.so").exists()


def test_a_required_build_that_fails_is_an_error(root: Path, tmp_path: Path, run_python) -> None:
    done = build(run_python, root, tmp_path, CXX="/bin/false", FLASHVL_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "FLASHVL_REQUIRE_EXT=1" in done.stderr


def test_cuda_kernels_that_cannot_be_built_are_an_error(
    root: Path, tmp_path: Path, run_python
) -> None:
    """Asked for, and no nvcc: not an install that falls back in silence."""
    without = tmp_path / "bin"
    without.mkdir()
    for name in ("c++", "cmake"):
        (without / name).symlink_to(shutil.which(name) or "/absent")
    done = build(run_python, root, tmp_path, FLASHVL_BUILD_CUDA="1", PATH=str(without))
    assert done.returncode != 0
    assert "nvcc is not on PATH" in done.stdout
    assert "FLASHVL_BUILD_CUDA=1 makes the failed build" in done.stderr


def test_the_build_can_be_skipped(root: Path, tmp_path: Path, run_python) -> None:
    done = build(run_python, root, tmp_path, CXX="/bin/false", FLASHVL_SKIP_EXT="1")
    assert done.returncode == 0, done.stderr
    assert "FLASHVL_SKIP_EXT=1" in json.loads((tmp_path / "_build.json").read_text())["reason"]
    assert not (tmp_path / "libflashvl_kernels.so").exists()
