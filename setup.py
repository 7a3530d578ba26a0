"""Packages, and the commands that build the extension; everything else is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_extension  # noqa: E402  (tools/ has just been put on the path)

FOLDERS = {
    "flashvl_kernels": "flashvl_kernels",
    "flashvl": "model/flashvl",
    "flashvl_bench": "bench",
}
# The CUDA sources, which NVRTC compiles on the user's machine: a folder of data beside the modules.
SOURCES = "flashvl_kernels.cuda.csrc"


def packages() -> list[str]:
    """Every import package, under the name it is imported by."""
    found = []
    for name, folder in FOLDERS.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return [*found, SOURCES]


class BuildExtension(build_ext):
    """Build with CMake, into the source tree for an editable install."""

    def run(self) -> None:
        base = ROOT if self.inplace else Path(self.build_lib)
        build_extension.build(base / "flashvl_kernels")

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """The library uses no CPython interface, so one wheel serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=packages(),
    package_dir={**FOLDERS, SOURCES: "csrc/cuda"},
    ext_modules=[Extension("flashvl_kernels.extension_library", sources=[])],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
)
