"""The result files: JSON, versioned, and refused with a reason where they are not what they say.

`SHAPES` describes each kind of file. A dict in it is an object with exactly these keys, a list a
list of one shape, a `Free` an object with free keys, a `Maybe` null or its shape, a type itself; a
union is either. Beyond shapes, what a reader would stumble over is refused: a state that is none, a
time where there is no right result, a median that is not that of its times, a number no machine
reaches, a profile whose rows do not add up, a key that is there twice.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

VERSION = 3
LARGEST_FILE = 64 << 20  # a full run is under 2 MiB


class SchemaError(ValueError):
    """A result file that cannot be used; the text names the place in it."""


@dataclass(frozen=True)
class Free:
    """An object with free keys whose values have one shape."""

    values: Any


@dataclass(frozen=True)
class Maybe:
    """Null, or a value of one shape."""

    shape: Any


_STATE = {
    "sm_mhz": float | None, "memory_mhz": float | None, "celsius": float | None,
    "watts": float | None, "throttled": [str], "unknown": str,
}  # fmt: skip
_GPU = {
    "name": str, "arch": str, "multiprocessors": int, "cache_bytes": int, "memory_bytes": int,
    "runtime": str, "driver": str, "before": Maybe(_STATE), "after": Maybe(_STATE),
}  # fmt: skip
_MACHINE = {
    "cpu": str, "cores": int, "threads": int, "cache_bytes": int, "memory_bytes": int,
    "system": str, "python": str, "torch": str, "flashvl": str, "cpu_level": str,
    "extension": str, "date": str, "gpu": Maybe(_GPU),
}  # fmt: skip
_CEILINGS = {
    "read": float, "copy": float, "gemm": Free(float), "threads": int, "loops": Free(float),
    "torch_read": float,
}  # fmt: skip
_HEAD = {"schema": str, "version": int, "machine": _MACHINE}
_TIME = float | None
STATUSES: dict[str, dict[str, tuple[str, ...]]] = {
    "flashvl-bench/ops": {"rows": ("ok", "falls back", "wrong", "fails")},
    "flashvl-bench/model": {
        "parts": ("ok", "wrong"),
        "peers": ("ok", "absent"),
        "memory": ("ok", "fails"),
        "loading": ("ok", "fails"),
    },
}
DEVICES = ("cpu", "cuda")
LAUNCHES = ("graph", "eager")  # of a call on a GPU
LARGEST_NUMBER = 1e24  # FLOPs, bytes and rates stay below; a larger one breaks arithmetic on floats
LONGEST_TEXT = 20_000  # a compiler's error in a `reason` is the longest there is
ADDS_UP = 0.05  # the rows of a profile and its wall time differ by less

SHAPES: dict[str, dict[str, Any]] = {
    "flashvl-bench/ops": {
        **_HEAD,
        "settings": {
            "ops": [str], "backends": [str], "dtypes": [str], "quick": bool, "warm": bool,
            "budget": {"seconds": float, "least": int, "most": int},
            "allocator_keeps_memory": bool, "device": str, "families": [str],
        },
        "ceilings": _CEILINGS,
        "ceilings_end": _CEILINGS,
        "rows": [
            {
                "op": str, "sample": str, "family": str, "dtype": str, "asked": str,
                "status": str, "reason": str, "backend": str, "kernel": str,
                "bytes_read": int, "bytes_written": int, "flops": int,
                "seconds": [float], "plain_seconds": [float],
                "median": _TIME, "iqr": _TIME, "plain_median": _TIME,
                "bytes_per_second": _TIME, "flops_per_second": _TIME, "fraction": _TIME,
                "bound": str, "copies": int, "swept": bool, "launch": str, "plain_launch": str,
            }
        ],
    },
    "flashvl-bench/gate": {
        **_HEAD,
        "settings": {
            "ops": [str], "dtypes": [str], "backend": str, "samples": int, "cases": str | None,
            "warm": bool, "seconds": float, "threads": int, "slower": Free(float),
        },
        "rows": [
            {
                "case": [str], "processes": int, "status": str, "reason": str,
                "seconds": [float], "base_seconds": [float], "median": _TIME,
            }
        ],
    },
    "flashvl-bench/model": {
        **_HEAD,
        "settings": {
            "config": str, "weights": [str], "dtype": str, "backend": str, "peers": [str],
            "prompt": int, "tokens": int, "repeats": int, "layers": int | None, "parts": [str],
        },
        "ceilings": _CEILINGS,
        "ceilings_end": _CEILINGS,
        "parts": [
            {
                "part": str, "weights": str, "backend": str, "status": str, "reason": str,
                "bytes_read": int, "bytes_written": int, "flops": int, "seconds": [float],
                "median": _TIME, "iqr": _TIME, "tokens_per_second": _TIME, "fraction": _TIME,
                "bound": str, "error": _TIME, "peer_error": _TIME, "cosine": _TIME,
                "peers": [
                    {
                        "name": str, "status": str, "reason": str, "seconds": [float],
                        "median": _TIME, "iqr": _TIME, "speedup": _TIME,
                    }
                ],
            }
        ],
        "memory": [
            {
                "weights": str, "status": str, "reason": str, "held_bytes": int,
                "peak_bytes": int, "steady_bytes": int,
            }
        ],
        "loading": [
            {
                "status": str, "reason": str, "weight_bytes": int, "baseline_bytes": int,
                "peak_bytes": int, "ratio": float,
            }
        ],
    },
    "flashvl-bench/profile": {
        **_HEAD,
        "settings": {
            "config": str, "image": str, "question": str, "tokens": int, "dtype": str,
            "weights": str, "backend": str, "device": str, "repeats": int, "layers": int | None,
            "nvtx": bool,
        },
        "ceilings": Maybe(_CEILINGS),
        "ceilings_end": Maybe(_CEILINGS),
        "walls": {"recorded": float, "op_by_op": float, "usual": float},
        "rows": [
            {
                "where": str, "op": str, "shape": str, "dtype": str, "backend": str, "kernel": str,
                "calls": int, "seconds": float, "bytes_read": int, "bytes_written": int,
                "flops": int, "fraction": _TIME, "bound": str,
            }
        ],
    },
}  # fmt: skip


def validate(document: Any) -> None:
    """Raise SchemaError unless `document` is a result file of this version."""
    kind = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in SHAPES:
        raise SchemaError(f"not a result file: its schema is none of {', '.join(sorted(SHAPES))}")
    version = document.get("version")
    if version != VERSION:
        raise SchemaError(
            f"version is {version!r:.60}; this flashvl-bench reads version {VERSION}: measure again"
        )
    _check(document, SHAPES[kind], "file")
    if kind == "flashvl-bench/profile":
        _check_sum(document)
        return
    if kind == "flashvl-bench/ops":
        _check_device(document)
    known = STATUSES.get(kind, {"rows": ()})
    for name in known.keys() & document.keys():
        for i, row in enumerate(document[name]):
            _check_row(row, known[name], f"file.{name}[{i}]")
            for j, peer in enumerate(row.get("peers", [])):
                _check_row(peer, known["peers"], f"file.{name}[{i}].peers[{j}]")


def _check_row(row: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    """The status is one of `known`, if any are; times stand where it is ok, and nowhere else."""
    if known and row["status"] not in known:
        raise SchemaError(
            f"{place}.status is {row['status']!r:.60}; needs one of {', '.join(known)}"
        )
    for name, value in row.items():
        if isinstance(value, int | float) and value < 0:
            raise SchemaError(f"{place}.{name} is {value!r:.60}; needs at least 0")
    if "seconds" not in row:
        return
    if row["status"] != "ok" and (row["seconds"] or row["median"] is not None):
        raise SchemaError(f"{place} has a time, but its status is {row['status']!r}")
    if row["status"] == "ok" and (not row["seconds"] or min(row["seconds"]) <= 0):
        raise SchemaError(f"{place}.seconds has no time above 0, but its status is 'ok'")
    for name, times in (("median", "seconds"), ("plain_median", "plain_seconds")):
        if row["status"] == "ok" and row.get(times):
            told, median = row[name], statistics.median(row[times])
            if told is None or not math.isclose(told, median, rel_tol=1e-6):
                raise SchemaError(f"{place}.{name} is {told!r:.60}; its times say {median}")


def _check_device(document: dict[str, Any]) -> None:
    """A time of a GPU is one that a GPU gave: the file names it, and says how it was launched."""
    device, gpu = document["settings"]["device"], document["machine"]["gpu"]
    if device not in DEVICES:
        raise SchemaError(f"file.settings.device is {device!r:.60}; needs {', '.join(DEVICES)}")
    if (device == "cuda") != (gpu is not None):
        told = "is missing" if gpu is None else f"is {gpu['name']!r:.60}"
        raise SchemaError(f"file.machine.gpu {told}, but file.settings.device is {device!r}")
    for i, row in enumerate(document["rows"]):
        for name in ("launch", "plain_launch"):
            timed = device == "cuda" and row["status"] == "ok"
            if row[name] not in (LAUNCHES if timed else ("",)):
                raise SchemaError(
                    f"file.rows[{i}].{name} is {row[name]!r:.60}, but the row is "
                    f"{row['status']!r} on {device}"
                )


def _check_sum(document: dict[str, Any]) -> None:
    """The rows of a profile add up to the time of the answer they are of."""
    total = sum(row["seconds"] for row in document["rows"])
    wall = document["walls"]["recorded"]
    if wall <= 0 or abs(total / wall - 1) > ADDS_UP:
        raise SchemaError(f"file.rows add up to {total} s, but file.walls.recorded is {wall} s")


def write(document: dict[str, Any], path: str | Path) -> None:
    """Validate and write; the file appears whole or not at all."""
    text = json.dumps(document, indent=1, allow_nan=False)
    validate(json.loads(text))
    partial = Path(f"{path}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def read(path: str | Path) -> dict[str, Any]:
    """The result file at `path`. SchemaError says what is wrong with it."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise SchemaError(f"{path} is no regular file")
        size = os.path.getsize(path)
        if size > LARGEST_FILE:
            raise SchemaError(f"{path} has {size} bytes; a result file has at most {LARGEST_FILE}")
        text = Path(path).read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except OSError as error:
        raise SchemaError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{path} is not JSON (cut short?): {error}") from error
    try:
        validate(document)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error
    return document


def _no_constant(name: str) -> float:
    raise SchemaError(f"holds {name}, which no measurement gives")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise SchemaError(f"has the key {twice!r:.60} twice in one object")
    return found


def _check(value: Any, shape: Any, place: str) -> None:
    if isinstance(shape, Maybe):
        if value is not None:
            _check(value, shape.shape, place)
    elif isinstance(shape, dict | Free):
        if not isinstance(value, dict):
            raise SchemaError(f"{place} is a {type(value).__name__}; needs an object")
        wanted = dict.fromkeys(value, shape.values) if isinstance(shape, Free) else shape
        for key in (*wanted, *value):
            if (key in wanted) != (key in value):
                raise SchemaError(f"{place}.{key} is {'missing' if key in wanted else 'unknown'}")
        for key, inner in wanted.items():
            _check(value[key], inner, f"{place}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise SchemaError(f"{place} is a {type(value).__name__}; needs a list")
        for i, item in enumerate(value):
            _check(item, shape[0], f"{place}[{i}]")
    elif not _fits(value, shape):
        raise SchemaError(f"{place} is {value!r:.60}; needs {getattr(shape, '__name__', shape)}")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in kind.__args__)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind in (int, float) and isinstance(value, int | float):
        # Comparison first: the conversion of an integer of 400 digits overflows.
        small = -LARGEST_NUMBER < value < LARGEST_NUMBER
        return small and (kind is float or isinstance(value, int))
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return False
    return isinstance(value, kind)
