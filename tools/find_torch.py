"""Find an installed PyTorch without importing it.

Package metadata must never import torch, and under build isolation torch is not importable at all,
although it lies in the environment the package is being installed into. So the build looks where
that environment keeps its packages, and only then along `sys.path` (where an isolated build
environment puts a torch that had to be downloaded).
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path

MINIMUM = (2, 10)
"""The oldest PyTorch with every stable-ABI function we use (see CMakeLists.txt)."""

REQUIREMENT = "torch>=" + ".".join(map(str, MINIMUM))


@dataclass(frozen=True)
class Torch:
    """An installed torch package: the folder holding include/ and lib/, and its version."""

    folder: Path
    version: str


def _inherits_system_packages() -> bool:
    """This virtual environment was made with --system-site-packages."""
    config = Path(sys.prefix) / "pyvenv.cfg"
    if sys.prefix == sys.base_prefix or not config.is_file():
        return False
    settings = dict(line.partition("=")[::2] for line in config.read_text().splitlines())
    return settings.get("include-system-site-packages ", "").strip() == "true"


def installed_folders() -> list[str]:
    """Where the interpreter's own packages lie, whatever a build environment did to sys.path."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if _inherits_system_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folders += [
            sysconfig.get_path("purelib", vars=base),
            *site.getsitepackages([sys.base_prefix]),
        ]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return list(dict.fromkeys(folders))


def _version(folder: str) -> str | None:
    return next((found.version for found in distributions(name="torch", path=[folder])), None)


def find(folders: Iterable[str]) -> Torch | None:
    """The first torch in `folders` that is recent enough; None when there is none."""
    for folder in folders:
        module = PathFinder.find_spec("torch", [folder])
        version = _version(folder)
        if module is None or not module.submodule_search_locations or version is None:
            continue
        release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
        if release >= MINIMUM:
            return Torch(Path(next(iter(module.submodule_search_locations))), version)
    return None


def find_installed() -> Torch | None:
    """The torch that the built package will run with."""
    return find(installed_folders())


def find_for_build() -> Torch | None:
    """The torch to build against: the installed one, else the build environment's."""
    return find([*installed_folders(), *sys.path])
