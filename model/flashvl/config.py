"""The sizes of a Flash-VL and the policy that turns an image into tiles.

Four frozen dataclasses (vision, adapter, decoder, image) inside one `FlashVLConfig`, read from and
written to `config.json`. Numbers of the released models come from arXiv 2505.09498, the released
weight files and the configurations of SigLIP2, AIMv2 and Qwen2; what no source settles (grid
candidates, overlap, stitching rule, thumbnail) is a field, never a constant in the code.

Stitching (ISS) is written as three fields of `ImagePolicy` and one compression:

* H1, the default of `dynamic_iss_2b`: neighbours overlap by 8 patches and the outer ring of 4 is
  dropped (`overlap=8, border=4, rule="crop"`), so each 32x32 tile keeps exactly its 24x24 core.
* H2: `border=0, rule="mean"|"linear"` with
  `compression={"kind": "adaptive", "out": [24, 24]}` pools the stitched canvas to 576 tokens.
* H3: `vision.tile_px=336` (24x24 patches), `overlap=0`, the position table cut to its first rows.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flashvl.fields import (
    ConfigError,
    check_divides,
    check_positive,
    check_types,
    read_part,
    unknown,
)
from flashvl_kernels.compression import Compression
from flashvl_kernels.tiles import TileGrid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Keys that Hugging Face tools write into every config.json; they say nothing of the model's shape.
BOOKKEEPING = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "model_type",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


@dataclass(frozen=True)
class VisionConfig:
    """A tile encoder. `tile_px` and `patch` are pixels; `positions` is the length of the stored
    position table (default: one a patch; a longer table is cut to its first rows)."""

    kind: Literal["siglip2", "aimv2"]
    dim: int
    layers: int
    heads: int
    mlp: int
    patch: int
    tile_px: int
    eps: float
    positions: int | None = None

    def __post_init__(self) -> None:
        check_types(self, "vision")
        check_positive(self, "vision", "dim", "layers", "heads", "mlp", "patch", "tile_px", "eps")
        check_divides("vision.dim", self.dim, "vision.heads", self.heads)
        check_divides("vision.tile_px", self.tile_px, "vision.patch", self.patch)
        if self.positions is not None and self.positions < self.tokens:
            raise ConfigError(
                f"vision.positions is {self.positions}, but a tile of {self.tile_px} px has "
                f"{self.tokens} patches of {self.patch} px; the table must be at least that long"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def tile(self) -> int:
        """Patches on a side of a tile."""
        return self.tile_px // self.patch

    @property
    def tokens(self) -> int:
        return self.tile**2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch row: 3 channels of patch x patch."""
        return 3 * self.patch**2


@dataclass(frozen=True)
class AdapterConfig:
    """LayerNorm and MLP from `input` channels (after compression) to the decoder's width."""

    input: int
    inner: int
    output: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_types(self, "adapter")
        check_positive(self, "adapter", "input", "inner", "output", "eps")


@dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 decoder: GQA with biases on q, k and v, SwiGLU, RMSNorm, NeoX rotation."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    rope_theta: float = 1e6
    eps: float = 1e-6
    max_positions: int = 32768
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        check_types(self, "decoder")
        sizes = [f.name for f in dataclasses.fields(self) if f.name != "tie_embeddings"]
        check_positive(self, "decoder", *sizes)
        check_divides("decoder.heads", self.heads, "decoder.kv_heads", self.kv_heads)
        if self.head_dim % 2:
            raise ConfigError(f"decoder.head_dim is {self.head_dim}; rotation needs an even number")

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class ImagePolicy:
    """How an image becomes tiles, and tile features become tokens.

    `grids` lists the allowed (rows, cols); None means every grid of min_tiles to max_tiles tiles.
    `overlap` and `border` are patches. With `stitch`, tiles are joined into one canvas before
    compression; without it each tile is compressed alone. `thumbnail` adds the whole image as one
    tile where more than one tile was cut. `tile` and `patch` are filled in from the vision part.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    min_tiles: int = 1
    max_tiles: int = 1
    grids: tuple[tuple[int, int], ...] | None = None
    thumbnail: bool = False
    stitch: bool = False
    overlap: int = 0
    border: int = 0
    rule: Literal["crop", "mean", "linear"] = "crop"
    compression: Mapping[str, Any] = field(default_factory=lambda: {"kind": "shuffle", "factor": 2})
    tile: int = 0
    patch: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.grids, Sequence):
            pairs = tuple(tuple(g) if isinstance(g, Sequence) else g for g in self.grids)
            object.__setattr__(self, "grids", pairs)
        check_types(self, "image")
        if min(self.std) <= 0:
            raise ConfigError(f"image.std is {self.std}; every value must be above zero")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(
                f"image.min_tiles is {self.min_tiles} and image.max_tiles {self.max_tiles}; "
                "they need 1 <= min_tiles <= max_tiles"
            )
        for name in ("overlap", "border", "tile", "patch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"image.{name} is {getattr(self, name)}; it cannot be negative")
        self._check_grids()
        if (self.overlap or self.border) and not self.stitch:
            raise ConfigError(
                f"image.overlap is {self.overlap} and image.border {self.border}, but image.stitch "
                "is false; overlapping tiles must be stitched: set image.stitch to true"
            )
        self._check_compression()

    def _check_grids(self) -> None:
        if self.grids is None:
            return
        if not self.grids:
            raise ConfigError("image.grids is empty; list at least one [rows, cols], or use null")
        for rows, cols in self.grids:
            if rows < 1 or cols < 1 or not self.min_tiles <= rows * cols <= self.max_tiles:
                raise ConfigError(
                    f"image.grids holds [{rows}, {cols}], which is not between image.min_tiles "
                    f"{self.min_tiles} and image.max_tiles {self.max_tiles} tiles"
                )

    def _check_compression(self) -> None:
        known = {f.name for f in dataclasses.fields(Compression)}
        for name in self.compression:
            if name not in known:
                raise ConfigError(unknown("image.compression", str(name), known))
        if "kind" not in self.compression:
            raise ConfigError('image.compression has no "kind"; for example {"kind": "shuffle"}')
        if not self.tile:
            return
        for rows, cols in ((1, 1), *self.candidates()):
            try:
                self.tokens(self.grid(rows, cols))
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"image.overlap {self.overlap}, image.border {self.border} and "
                    f"image.compression {dict(self.compression)} on {rows}x{cols} tiles: {error}"
                ) from error

    def candidates(self) -> tuple[tuple[int, int], ...]:
        """Every allowed (rows, cols), fewest tiles first."""
        if self.grids is not None:
            return self.grids
        most = range(1, self.max_tiles + 1)
        pairs = [(r, c) for r in most for c in most if self.min_tiles <= r * c <= self.max_tiles]
        return tuple(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)))

    def grid(self, rows: int, cols: int) -> TileGrid:
        """The geometry of `rows` x `cols` tiles under this policy."""
        return TileGrid(rows, cols, self.tile, self.overlap, self.rule, self.border)

    def units(self, grid: TileGrid) -> tuple[int, int]:
        """(rows, cols) of the token map that compression sees: the canvas, or one tile."""
        return grid.canvas if self.stitch else (grid.tile, grid.tile)

    def compression_for(self, grid: TileGrid) -> Compression:
        """The compression of `grid`, with the output size of adaptive and bilinear pooling."""
        how = dict(self.compression)
        if how["kind"] in ("adaptive", "bilinear") and how.get("out") is None:
            factor = how.get("factor", 2)
            how["out"] = tuple(math.ceil(side / factor) for side in self.units(grid))
        return Compression(**how)

    def tokens(self, grid: TileGrid) -> int:
        """Decoder tokens that `grid` becomes."""
        units = 1 if self.stitch else grid.tiles
        return units * self.compression_for(grid).tokens(*self.units(grid))

    def channels(self, dim: int) -> int:
        """Channels of a token after compression of `dim` channels."""
        return self.compression_for(self.grid(1, 1)).channels(dim)


@dataclass(frozen=True)
class FlashVLConfig:
    """A whole model. `FlashVLConfig.static_2b()`, `.dynamic_2b()`, `.dynamic_iss_2b()`, `.tiny()`
    are the known ones; `from_json` reads a config.json."""

    vision: VisionConfig
    adapter: AdapterConfig
    decoder: DecoderConfig
    image: ImagePolicy = field(default_factory=ImagePolicy)

    def __post_init__(self) -> None:
        check_types(self, "")
        image, vision = self.image, self.vision
        for name, ours in (("tile", vision.tile), ("patch", vision.patch)):
            if getattr(image, name) not in (0, ours):
                raise ConfigError(
                    f"image.{name} is {getattr(image, name)}, but the vision part makes it {ours}; "
                    f"leave image.{name} out"
                )
        filled = dataclasses.replace(image, tile=vision.tile, patch=vision.patch)
        object.__setattr__(self, "image", filled)
        channels = filled.channels(vision.dim)
        if self.adapter.input != channels:
            raise ConfigError(
                f"adapter.input is {self.adapter.input}, but vision.dim {vision.dim} after "
                f"image.compression {dict(filled.compression)} has {channels} channels"
            )
        if self.adapter.output != self.decoder.dim:
            raise ConfigError(
                f"adapter.output is {self.adapter.output}, but decoder.dim is {self.decoder.dim}; "
                "image rows stand among word embeddings, so they must be equal"
            )

    @classmethod
    def static_2b(cls) -> FlashVLConfig:
        """SigLIP2-so400m/16-512, one tile, 256 tokens an image."""
        vision = VisionConfig("siglip2", 1152, 27, 16, 4304, 16, 512, 1e-6)
        return cls(vision, AdapterConfig(4608, 7168, 1536), _qwen2_1_5b())

    @classmethod
    def dynamic_2b(cls) -> FlashVLConfig:
        """AIMv2-huge/14-448, 1 to 12 tiles and a thumbnail, 256 tokens a tile."""
        image = ImagePolicy(CLIP_MEAN, CLIP_STD, max_tiles=12, thumbnail=True)
        return cls(_aimv2_huge(), AdapterConfig(6144, 7168, 1536), _qwen2_1_5b(), image)

    @classmethod
    def dynamic_iss_2b(cls) -> FlashVLConfig:
        """AIMv2-huge/14-448, overlapping tiles stitched by reading H1: 576 tokens a tile."""
        image = ImagePolicy(
            CLIP_MEAN,
            CLIP_STD,
            max_tiles=12,
            thumbnail=True,
            stitch=True,
            overlap=8,
            border=4,
            compression={"kind": "none"},
        )
        return cls(_aimv2_huge(), AdapterConfig(1536, 7168, 1536), _qwen2_1_5b(), image)

    @classmethod
    def tiny(cls) -> FlashVLConfig:
        """A 2.3 M parameter Dynamic-ISS model, small enough to train on two CPU cores."""
        image = ImagePolicy(
            max_tiles=2,
            grids=((1, 1), (1, 2), (2, 1)),
            stitch=True,
            overlap=2,
            rule="linear",
            compression={"kind": "adaptive", "factor": 2},
        )
        decoder = DecoderConfig(
            192, 4, 3, 1, 64, 384, 512, rope_theta=1e4, max_positions=1024, tie_embeddings=True
        )
        vision = VisionConfig("aimv2", 128, 4, 2, 344, 8, 64, 1e-5)
        return cls(vision, AdapterConfig(128, 256, 192), decoder, image)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> FlashVLConfig:
        """Reads a config.json, or a mapping parsed from one. ConfigError names what is wrong."""
        if not isinstance(source, Mapping):
            source = _read_json(Path(source))
        parts = {f.name for f in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for name, value in source.items():
            if name in parts:
                given[name] = value
            elif name not in BOOKKEEPING:
                raise ConfigError(unknown("", name, parts))
        kinds = {"vision": VisionConfig, "adapter": AdapterConfig, "decoder": DecoderConfig}
        for name, kind in kinds.items():
            if name not in given:
                raise ConfigError(f"config has no {name!r} part; it needs {sorted(kinds)}")
            given[name] = read_part(kind, name, given[name])
        if "image" in given:
            given["image"] = read_part(ImagePolicy, "image", given["image"])
        return cls(**given)

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """The configuration as plain JSON values; with `path`, also written there."""
        out = dataclasses.asdict(dataclasses.replace(self))
        for derived in ("tile", "patch"):
            del out["image"][derived]
        out = {"model_type": "flashvl", "architectures": ["FlashVL"], **out}
        text = json.dumps(out, indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return json.loads(text)


def _qwen2_1_5b() -> DecoderConfig:
    return DecoderConfig(1536, 28, 12, 2, 128, 8960, 151936)


def _aimv2_huge() -> VisionConfig:
    return VisionConfig("aimv2", 1536, 24, 12, 4096, 14, 448, 1e-5)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} holds a {type(value).__name__}; it needs an object")
    return value
