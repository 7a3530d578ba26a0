"""The result files: JSON, versioned, and refused with a reason where they are not what they say.

`SHAPES` describes each kind of file. A dict in it is an object with exactly these keys, a list a
list of one shape, a `Free` an object with free keys, a type itself; a union is either.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

VERSION = 2
LARGEST_FILE = 64 << 20  # a full run is under 2 MiB


class SchemaError(ValueError):
    """A result file that cannot be used; the text names the place in it."""


@dataclass(frozen=True)
class Free:
    """An object with free keys whose values have one shape."""

    values: Any


_MACHINE = {
    "cpu": str, "cores": int, "threads": int, "cache_bytes": int, "memory_bytes": int,
    "system": str, "python": str, "torch": str, "flashvl": str, "cpu_level": str,
    "extension": str, "date": str,
}  # fmt: skip
_CEILINGS = {
    "read": float, "copy": float, "gemm": Free(float), "threads": int, "loops": Free(float),
    "torch_read": float,
}  # fmt: skip
_HEAD = {"schema": str, "version": int, "machine": _MACHINE}
_TIME = float | None

SHAPES: dict[str, dict[str, Any]] = {
    "flashvl-bench/ops": {
        **_HEAD,
        "settings": {
            "ops": [str], "backends": [str], "dtypes": [str], "quick": bool, "warm": bool,
            "budget": {"seconds": float, "least": int, "most": int},
            "allocator_keeps_memory": bool,
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
                "bound": str, "copies": int, "swept": bool,
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
}  # fmt: skip


def validate(document: Any) -> None:
    """Raise SchemaError unless `document` is a result file of this version."""
    if not isinstance(document, dict) or document.get("schema") not in SHAPES:
        raise SchemaError(f"not a result file: its schema is none of {', '.join(sorted(SHAPES))}")
    version = document.get("version")
    if version != VERSION:
        raise SchemaError(
            f"version is {version!r}; this flashvl-bench reads version {VERSION}: measure again"
        )
    _check(document, SHAPES[document["schema"]], "file")
    rows = "rows" if "rows" in document else "parts"
    for i, row in enumerate(document[rows]):
        _check_times(row, f"file.{rows}[{i}]")
        for j, peer in enumerate(row.get("peers", [])):
            _check_times(peer, f"file.{rows}[{i}].peers[{j}]")


def _check_times(row: dict[str, Any], place: str) -> None:
    """Times stand where the status is ok, and nowhere else."""
    if row["status"] != "ok" and (row["seconds"] or row["median"] is not None):
        raise SchemaError(f"{place} has a time, but its status is {row['status']!r}")
    if row["status"] == "ok" and (not row["seconds"] or min(row["seconds"]) <= 0):
        raise SchemaError(f"{place}.seconds has no time above 0, but its status is 'ok'")


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
        size = os.path.getsize(path)
        if size > LARGEST_FILE:
            raise SchemaError(f"{path} has {size} bytes; a result file has at most {LARGEST_FILE}")
        text = Path(path).read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_no_constant)
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


def _check(value: Any, shape: Any, place: str) -> None:
    if isinstance(shape, dict | Free):
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
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)
