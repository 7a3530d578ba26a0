"""Checkpoints in the released layout: config.json, safetensors in one file or in shards, tokenizer.

Everything that can be wrong is looked for in the headers, before any memory is taken: a file cut
short, an index that points outside its folder (`weight_files`), and every missing, unexpected or
misshapen key (by the table in `released`), in one error. The weights are then copied parameter by
parameter. File pages count as resident memory while they are
mapped, so the files are reopened as reading goes on: the peak stays near the weights' own size.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from flashvl.config import FlashVLConfig
from flashvl.parameters import fill, refill
from flashvl.released import UNUSED, Piece, plain_key, released
from flashvl.weight_files import (
    INDEX,
    SINGLE,
    CheckpointError,
    open_file,
    read_header,
    weight_files,
)

if TYPE_CHECKING:
    from flashvl.model import FlashVL
    from flashvl.tokenizer import Tokenizer

CONFIG = "config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
PACKAGED = Path(__file__).parent / "assets"

FLOATS = ("BF16", "F16", "F32", "F64")

# A file is read in blocks and reopened after so many bytes, which drops its pages: 0.7 % of a 2 B
# model in bf16. Reopening costs a millisecond, 2 % of copying that much.
MAPPED_BYTES = 32 << 20


class Reader(Protocol):
    """Tensors by released key."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every key."""

    def read(self, key: str, rows: slice) -> Tensor:
        """Rows of the tensor `key`; may be a view that lives until the next call."""


class StateReader:
    """A state dict as a Reader."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = {plain_key(key): tensor for key, tensor in state.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            key: tuple(tensor.shape) for key, tensor in self._state.items()
        }

    def read(self, key: str, rows: slice) -> Tensor:
        return self._state[key][rows]


class FileReader:
    """The safetensors files of a folder as a Reader."""

    def __init__(self, folder: Path) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self._places: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder):
            for key, entry in read_header(path).items():
                plain = plain_key(key)
                if plain in self._places:
                    other = self._places[plain][0].name
                    raise CheckpointError(f"{key} is in both {other} and {path.name} of {folder}")
                self._places[plain] = path, key
                shapes[plain] = tuple(entry["shape"])
                if entry["dtype"] not in FLOATS and not UNUSED.fullmatch(plain):
                    raise CheckpointError(
                        f"{path}: {key} has dtype {entry['dtype']}; needs one of {list(FLOATS)}: "
                        "load the unquantised checkpoint and ask for weights='int8' or 'int4'"
                    )
        self._open: tuple[Path, Any] | None = None
        self._mapped = 0

    def read(self, key: str, rows: slice) -> Tensor:
        path, name = self._places[key]
        if self._open is None or self._open[0] != path or self._mapped > MAPPED_BYTES:
            self._open = None
            self._open = path, open_file(path)
            self._mapped = 0
        try:
            part = self._open[1].get_slice(name)[rows]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
        self._mapped += part.nbytes
        return part


@dataclass(frozen=True)
class _Pieces:
    """A parameters.Source that assembles fused parameters from a Reader."""

    reader: Reader
    places: Mapping[str, list[Piece]]

    def write(self, name: str, out: Tensor, first_row: int) -> None:
        for piece in self.places[name]:
            start = max(first_row, piece.first)
            stop = min(first_row + len(out), piece.first + piece.rows)
            if start >= stop:
                continue
            target = out[start - first_row : stop - first_row]
            self._copy(piece, start - piece.first, target)

    @torch.no_grad()
    def _copy(self, piece: Piece, row: int, target: Tensor) -> None:
        if piece.shape[0] != piece.rows:  # [1, rows, dim]
            values = self.reader.read(piece.key, slice(0, 1))[0]
            target.copy_(values[row : row + len(target)])
            return
        step = max(1, MAPPED_BYTES // (math.prod(target.shape[1:]) * 4))
        for part in target.split(step):
            values = self.reader.read(piece.key, slice(row, row + len(part)))
            part.copy_(values.reshape(part.shape))
            row += len(part)


def load(
    model: FlashVL,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    weights: str,
    layout: str,
) -> None:
    """Gives `model`, built on the meta device, the weights of `folder`."""
    source = _source(model.config, FileReader(folder), str(folder))
    fill(model, source, device, dtype, weights, layout)


def load_state(model: FlashVL, state: Mapping[str, Tensor]) -> None:
    """Copies `state` (released key names) into the parameters of `model`, in place."""
    refill(model, _source(model.config, StateReader(state), "state_dict"))


def _source(config: FlashVLConfig, reader: Reader, name: str) -> _Pieces:
    pieces = released(config)
    _check_keys(pieces, reader.shapes, name, config.decoder.tie_embeddings)
    places: dict[str, list[Piece]] = {}
    for piece in pieces:
        places.setdefault(piece.parameter, []).append(piece)
    return _Pieces(reader, places)


def _check_keys(
    pieces: list[Piece], shapes: Mapping[str, tuple[int, ...]], name: str, tied: bool
) -> None:
    wanted = {piece.key: piece.shape for piece in pieces}
    lines = []
    for key, shape in wanted.items():
        if key not in shapes:
            lines.append(f"missing    {key}: needs {list(shape)}, has nothing")
        elif shapes[key] != shape:
            lines.append(f"misshapen  {key}: needs {list(shape)}, has {list(shapes[key])}")
    for key, shape in shapes.items():
        ignored = UNUSED.fullmatch(key) or (tied and key == "llm.lm_head.weight")
        if key not in wanted and not ignored:
            lines.append(f"unexpected {key}: needs nothing, has {list(shape)}")
    if not lines:
        return
    if not tied and "llm.lm_head.weight" not in shapes:
        lines.append("if this checkpoint shares lm_head, set decoder.tie_embeddings to true")
    raise CheckpointError(
        f"{name} does not fit its config, {len(lines)} keys differ:\n  " + "\n  ".join(lines)
    )


def find(path: str | Path) -> Path:
    """The folder of a checkpoint: `path`, or the packaged one for "tiny"."""
    if path == "tiny":
        return PACKAGED / "tiny"
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"path is {str(path)!r}, which is no folder; pass a folder with {CONFIG} and "
            f'{SINGLE}, or "tiny" for the packaged model'
        )
    return folder


def read_config(folder: Path) -> FlashVLConfig:
    """config.json of `folder`."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; download the whole checkpoint folder")
    return FlashVLConfig.from_json(folder / CONFIG)


def read_tokenizer(folder: Path, vocab: int) -> Tokenizer | None:
    """The tokenizer of `folder`; None if it has none (only `generate` needs one)."""
    from flashvl.tokenizer import Tokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    return Tokenizer.from_pretrained(folder, vocab)


def save(model: FlashVL, folder: Path, shard_bytes: int) -> None:
    """Writes config.json, weights and tokenizer of `model` to `folder`; each file appears whole."""
    if shard_bytes < 1:
        raise CheckpointError(f"shard_bytes is {shard_bytes}; needs at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(model, shard_bytes))
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        temporary = folder / f".{name}.partial"
        save_file(shard, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        os.replace(temporary, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    # What an earlier save left would be read instead, or beside.
    (folder / (SINGLE if len(shards) > 1 else INDEX)).unlink(missing_ok=True)
    model.config.to_json(folder / CONFIG)
    if model.folder is not None and model.folder.resolve() != folder.resolve():
        for name in TOKENIZER:
            if (model.folder / name).is_file():
                shutil.copyfile(model.folder / name, folder / name)


def state(model: FlashVL) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `model` under its released key, in the order of `released`.

    A view of the parameter, or, where that is kept as panels, of a copy in plain rows.
    """
    whole: tuple[str, Tensor] | None = None
    for piece in released(model.config):
        if whole is None or whole[0] != piece.parameter:
            whole = piece.parameter, _rows(model, piece.parameter)
        rows = whole[1][piece.first : piece.first + piece.rows]
        yield piece.key, rows.reshape(piece.shape)


def _rows(model: FlashVL, name: str) -> Tensor:
    prefix, _, attribute = name.rpartition(".")
    module = model.get_submodule(prefix)
    packed = getattr(module, "packed", None)
    if attribute != "weight" or packed is None:
        values: Tensor = getattr(module, attribute)
        return values.detach()
    if packed.scale is not None:
        raise CheckpointError(
            f"{name} is packed; integer weights are not saved: "
            'save the model with weights="bf16" and pack while loading'
        )
    rows: Tensor = packed.dequantize(packed.data.dtype)
    return rows


def _shards(model: FlashVL, shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    used = 0
    for key, tensor in state(model):
        tensor = tensor.contiguous().cpu()
        if shard and used + tensor.nbytes > shard_bytes:
            yield shard
            shard, used = {}, 0
        shard[key] = tensor
        used += tensor.nbytes
    yield shard
