"""Launch choices measured on the GPU at hand, in the place of the stated models.

`flashvl-kernels tune` (tune.py) writes them, a file for each GPU, version of Triton and state of
the kernels' sources; another of any of them makes the file stale. Where there is no file, or none
that can be trusted, every launch is what its model says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from flashvl_kernels import triton as backend
from flashvl_kernels.gpu import power_of_two

VARIABLE = "FLASHVL_TRITON_TUNING"
VERSION = 1

Choice = TypeVar("Choice")
Numbers = dict[str, int]
"""The fields of a choice."""


class Session:
    """What a tuner forces on launches and learns from them.

    forced: choices by key. asked: by key, the model's choice, the device and the numbers of the
    shape of each made since.
    """

    def __init__(self) -> None:
        self.forced: dict[str, Any] = {}
        self.asked: dict[str, tuple[Any, Any, tuple[int, ...]]] = {}


_session: Session | None = None


@contextmanager
def tuning() -> Iterator[Session]:
    """Launches inside ask the session, not the table."""
    global _session
    _session = Session()
    try:
        yield _session
    finally:
        _session = None


def choose(kernel: str, model: Callable[..., Choice], *asked: Any, **more: Any) -> Choice:
    """What `kernel` is launched with: `model(*asked, **more)`, or what was measured to be faster.

    asked: rows, other numbers of the shape, and the device last, as all models take them.
    """
    device = asked[-1]
    if _session is None:
        measured = table(device.name)
        if not measured:
            return model(*asked, **more)
        found = measured.get(key(kernel, *asked[:-1], *more.values()))
        return model(*asked, **more) if found is None else _applied(model(*asked, **more), found)
    numbers = (*asked[:-1], *more.values())
    name = key(kernel, *numbers)
    default = model(*asked, **more)
    _session.asked[name] = (default, device, numbers)
    choice: Choice = _session.forced.get(name, default)
    return choice


def _applied(default: Choice, found: Numbers) -> Choice:
    """`default` with the fields found; as it is where those are another kind's."""
    if set(found) != set(asdict(default)):  # type: ignore[call-overload]
        return default
    return replace(default, **found)  # type: ignore[type-var,return-value]


def key(kernel: str, rows: int, *others: int) -> str:
    """A choice's name in the table. Rows count as the next power of two: lengths of prompts vary,
    and what is measured at one serves those near it."""
    return " ".join((kernel, str(power_of_two(rows)), *(str(int(other)) for other in others)))


# ---- the file ----------------------------------------------------------------------------------


def folder() -> Path:
    """FLASHVL_TRITON_TUNING, or flashvl-kernels/triton below the user's cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "flashvl-kernels" / "triton"


def path(gpu: str) -> Path:
    """The file of a GPU, by its name."""
    return folder() / f"{re.sub('[^0-9A-Za-z]+', '-', gpu)}.json"


@cache
def sources() -> str:
    """A hash over the kernels' files and what plans their launches."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for file in (*sorted(here.glob("*.py")), here.parent / "gpu.py"):
        text = file.read_bytes()
        total.update(f"{file.name} {len(text)}\n".encode() + text)
    return total.hexdigest()[:32]


def _stamp(gpu: str) -> dict[str, Any]:
    return {
        "version": VERSION, "gpu": gpu, "triton": backend.version(), "sources": sources(),
    }  # fmt: skip


def _hash(choices: Mapping[str, Numbers]) -> str:
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def save(gpu: str, choices: Mapping[str, Numbers]) -> Path:
    """Write the file of a GPU; a reader finds the old one or the new one, whole."""
    place = path(gpu)
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    try:
        with os.fdopen(handle, "w") as file:
            content = _stamp(gpu) | {"hash": _hash(choices), "choices": dict(choices)}
            json.dump(content, file, indent=1)
        os.replace(partial, place)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    table.cache_clear()
    return place


def why_not(gpu: str) -> str | None:
    """Why the file of a GPU is not used; None where it is, or where there is none."""
    return _read(gpu)[1]


@cache  # asked at every launch
def table(gpu: str) -> Mapping[str, Numbers]:
    """What was measured on a GPU; empty, with a warning, where the file cannot be trusted."""
    choices, reason = _read(gpu)
    if reason is not None:
        warnings.warn(f"flashvl_kernels: {reason}; launches follow their models", stacklevel=3)
    return choices


def _read(gpu: str) -> tuple[Mapping[str, Numbers], str | None]:
    again = f"run `flashvl-kernels tune` again, or remove {path(gpu)}"
    try:
        content = json.loads(path(gpu).read_text())
        choices, told = content["choices"], content["hash"]
        whole = told == _hash(choices)
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"the tuning table cannot be read ({type(error).__name__}: {error}); {again}"
    if not whole:
        return {}, f"the tuning table is damaged; {again}"
    for name, now in _stamp(gpu).items():
        if content.get(name) != now:
            return {}, (
                f"the tuning table is stale: it is for {name} {content.get(name)}, here is {now}; "
                f"{again}"
            )
    return choices, None
