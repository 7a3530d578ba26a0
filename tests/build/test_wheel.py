"""The wheel: everything the three packages need, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

BUILD = """
import os, sys
os.chdir(sys.argv[1])
sys.path.insert(0, "tools")
import build_backend
print(build_backend.build_wheel(sys.argv[2]))
"""

FOLDERS = {
    "flashvl_kernels": "flashvl_kernels",
    "flashvl": "model/flashvl",
    "flashvl_bench": "bench",
}


def test_wheel_holds_every_module_asset_and_the_library(
    root: Path, tmp_path: Path, library: Path, run_python
) -> None:
    done = run_python(BUILD, str(root), str(tmp_path), FLASHVL_REQUIRE_EXT="1")
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = tmp_path / done.stdout.split()[-1]
    assert wheel.name.startswith("flashvl_kernels-0.1.0-py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read("flashvl_kernels-0.1.0.dist-info/entry_points.txt").decode()
    expected = {"flashvl_kernels/libflashvl_kernels.so", "flashvl_kernels/_build.json"}
    for package, folder in FOLDERS.items():
        sources = [*(root / folder).rglob("*.py"), *(root / folder / "assets").rglob("*.*")]
        expected |= {f"{package}/{path.relative_to(root / folder)}" for path in sources}
    kernels = root / "csrc" / "cuda"
    expected |= {
        f"flashvl_kernels/cuda/csrc/{path.relative_to(kernels)}" for path in kernels.rglob("*.cuh")
    }
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == expected
    for script in ("flashvl = flashvl.cli:main", "flashvl-kernels = flashvl_kernels.cli:main"):
        assert script in entry_points
    assert "flashvl-bench = flashvl_bench.cli:main" in entry_points
