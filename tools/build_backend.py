"""The PEP 517 build backend: setuptools, with build requirements that depend on the machine.

torch is asked for only where none is installed: a build requirement would otherwise download a
second torch of several GB into every isolated build. CMake and ninja likewise.
"""

from __future__ import annotations

import shutil
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (  # noqa: F401  (hooks that stay as they are)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import build_extension
import find_torch

Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What an isolated build environment still lacks, given this machine."""
    if build_extension.skipped():
        return []
    needs = []
    if build_extension.find_cmake() is None:
        needs.append("cmake>=3.20")
    if build_extension.find_tool("ninja") is None:
        needs.append("ninja")
    if find_torch.find_installed() is None:
        needs.append(find_torch.REQUIREMENT)
    return needs


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel from a clean staging folder: setuptools would ship modules since deleted."""
    for staging in (build_extension.ROOT / "build").glob("lib*"):
        shutil.rmtree(staging)
    return _setuptools.build_wheel(wheel_directory, config_settings, metadata_directory)


build_editable = _setuptools.build_editable
