"""The two sides of a gate as worktrees of a git repository, each built.

A repository of ours (it has tools/build_extension.py) is built in a third worktree that goes from
the base to the head, so that only what differs between them is compiled twice; the library is
copied into the worktree of its side. With ccache on PATH CMake is told to use it. Any other
repository is built by the user's command in the worktree of each side.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flashvl_bench.gate.turns import Tree

BUILDER = Path("tools") / "build_extension.py"
NONE = "none"
_BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, "tools")
import build_extension
build_extension.build(Path(sys.argv[1]))
"""
_LOG_LINES = 20


class CheckoutError(RuntimeError):
    """A ref that does not exist, or a build that failed; the text says which and why."""


def git(repository: Path, *arguments: str) -> str:
    """What git prints, without the line's end. CheckoutError with git's own words."""
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise CheckoutError(f"git cannot be run: {error}") from error
    if done.returncode:
        raise CheckoutError(f"git {arguments[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout.rstrip("\n")


def commit(repository: Path, ref: str) -> str:
    """The full hash of a ref."""
    try:
        return git(
            repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"
        )
    except CheckoutError as error:
        raise CheckoutError(
            f"{ref!r} is no commit of {repository}; in CI, fetch it first (actions/checkout with "
            f"fetch-depth: 0)"
        ) from error


@contextmanager
def trees(
    repository: Path,
    refs: tuple[str, str],
    build: str | None,
    paths: tuple[str, ...],
    folder: Path,
    note: Callable[[str], None] = print,
) -> Iterator[tuple[Tree, Tree]]:
    """Both refs under `folder`, built; the worktrees are removed at the end.

    build: a shell command to run in each, "none", or None for that of our own repository. paths:
    folders of a checkout to import from.
    """
    commits = [commit(repository, ref) for ref in refs]
    made: list[Path] = []

    def add(name: str, ref: str) -> Path:
        place = folder / name
        git(repository, "worktree", "add", "--detach", "--quiet", str(place), ref)
        made.append(place)
        return place

    try:
        sides = [add(name, ref) for name, ref in zip(("base", "head"), commits, strict=True)]
        environment = {}
        if build is not None:
            _build_each(sides, build, note)
        elif all((side / BUILDER).exists() for side in sides):
            _build_ours(add("build", commits[0]), commits, sides, note)
            environment = {"FLASHVL_EXTENSION": ""}  # the library of the side, and no other
        else:
            raise CheckoutError(f"--build says how to build a ref; {NONE!r} where nothing is built")
        found = [
            Tree(tuple(side / path for path in paths if (side / path).is_dir()), environment)
            for side in sides
        ]
        yield found[0], found[1]
    finally:
        for place in made:
            git(repository, "worktree", "remove", "--force", str(place))


def _build_ours(
    place: Path, commits: list[str], sides: list[Path], note: Callable[[str], None]
) -> None:
    """Go through the commits in one worktree, and put each one's library into its side."""
    environment = {**os.environ, "FLASHVL_REQUIRE_EXT": "1"}
    environment.pop("FLASHVL_EXTENSION", None)
    if shutil.which("ccache"):
        # The worktree has another path in each run; relative to it, files are the same again.
        environment |= {"CCACHE_BASEDIR": str(place.resolve()), "CCACHE_NOHASHDIR": "1"}
        environment.setdefault("CMAKE_CXX_COMPILER_LAUNCHER", "ccache")
    for name, ref, side in zip(("base", "head"), commits, sides, strict=True):
        git(place, "checkout", "--quiet", "--detach", ref)
        note(f"building the {name}, {ref[:12]}")
        _run(
            [sys.executable, "-c", _BUILD, str(side / "flashvl_kernels")], place, environment, name
        )


def _build_each(sides: list[Path], build: str, note: Callable[[str], None]) -> None:
    for name, side in zip(("base", "head"), sides, strict=True):
        if build != NONE:
            note(f"building the {name}: {build}")
            _run(["sh", "-c", build], side, dict(os.environ), name)


def _run(command: list[str], place: Path, environment: dict[str, str], name: str) -> None:
    done = subprocess.run(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        log = "\n".join(done.stdout.splitlines()[-_LOG_LINES:])
        raise CheckoutError(f"the {name} does not build (status {done.returncode}):\n{log}")
