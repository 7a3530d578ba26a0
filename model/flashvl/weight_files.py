"""Which safetensors files a checkpoint folder has, and whether their headers can be true.

A folder may come from anywhere. Before any tensor is read, a file's header is checked against its
size, and an index may name files of its own folder only: no parent, no absolute path, and no link
that leads out. The format: 8 bytes of length, that much JSON, then the data
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The format's own limit on a header.
MAX_HEADER = 100_000_000


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded or saved; the text names the file or the keys."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`: model.safetensors, or the shards that the index names."""
    if (folder / SINGLE).is_symlink() or (folder / SINGLE).exists():
        return [_inside(folder, SINGLE, SINGLE)]
    if not (folder / INDEX).exists():
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{folder / INDEX} is not an index: {error!r}; it needs {{"weight_map": {{key: file}}}}'
        ) from error
    paths = [_inside(folder, name, INDEX) for name in names]
    headers = {path.name: read_header(path) for path in paths}
    for key, name in index["weight_map"].items():
        if key not in headers[name]:
            raise CheckpointError(f"{folder / INDEX} places {key} in {name}, which lacks it")
    return paths


def _inside(folder: Path, name: Any, named_by: str) -> Path:
    """`name` as a file of `folder` itself; links may only lead to the same folder, or to the blobs
    of a Hugging Face cache whose snapshot `folder` is."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise CheckpointError(
            f"{folder / named_by} names the file {name!r}; needs a plain name of a file beside it"
        )
    path = folder / name
    if "\\" in name or "\0" in name:
        raise CheckpointError(f"{folder / named_by} names the file {name!r}; needs a plain name")
    if not path.exists():
        raise CheckpointError(f"{folder / named_by} names {name!r}, which is not in {folder}")
    allowed = {folder.resolve()}
    if folder.parent.name == "snapshots":
        allowed.add((folder.parent.parent / "blobs").resolve())
    if path.resolve().parent not in allowed:
        raise CheckpointError(
            f"{path} is a link to {path.resolve()}, outside of its folder; copy the file here"
        )
    return path


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape", "data_offsets"} of a safetensors file; its size must agree."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if size == 0:
                raise CheckpointError(f"{path} is empty (0 bytes); download it again")
            if start == b"version ":
                raise CheckpointError(f"{path} is a Git LFS pointer, not weights; run git lfs pull")
            if length > min(size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"{path} is cut short or no safetensors file: its header claims {length} "
                    f"bytes, but the file has {size}; download it again"
                )
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        entries = [(entry["dtype"], list(entry["shape"])) for entry in header.values()]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} has no valid safetensors header: {error!r}") from error
    if not all(isinstance(n, int) and n >= 0 for _, shape in entries for n in shape):
        raise CheckpointError(f"{path} has a tensor of impossible shape; download it again")
    if 8 + length + end != size:
        raise CheckpointError(
            f"{path} should have {8 + length + end} bytes by its header, but has {size}; "
            "download it again"
        )
    open_file(path)  # the library's own checks of offsets and dtypes
    return header


def open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no valid safetensors file: {error}") from error
