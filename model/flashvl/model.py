"""Flash-VL 2B (arXiv 2505.09498): tile encoder, adapter, Qwen2 decoder, on flashvl_kernels only.

    image -> tiles -> encoder -> stitch, compress, adapter -> rows among word embeddings -> decoder

`FlashVL.from_pretrained("tiny")` is the packaged model that works out of the box;
`FlashVL.random(config)` has the shapes of any configuration and meaningless weights, for
benchmarks and tests. Both come without gradients; `model.requires_grad_()` turns training on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl import checkpoint, recorded_step
from flashvl.adapter import Adapter
from flashvl.config import FlashVLConfig
from flashvl.decoder import Decoder, Span
from flashvl.layers import Part
from flashvl.parameters import RandomSource, check_dtype, check_format, fill, resolve_device
from flashvl.vision import VisionEncoder
from flashvl_kernels.cache import KVCache
from flashvl_kernels.tiles import TileGrid

if TYPE_CHECKING:
    from flashvl.generate import Result
    from flashvl.tokenizer import Tokenizer

# Room for an answer when the caller does not say how long it will be.
ANSWER_ROOM = 512


class FlashVL(Part):
    """The whole model; parts are `vision`, `adapter` and `decoder`."""

    def __init__(
        self,
        config: FlashVLConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Uninitialised parameters; use `random` or `from_pretrained` for a model with values."""
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.vision = VisionEncoder(config.vision, **made)
        self.adapter = Adapter(config.adapter, **made)
        self.decoder = Decoder(config.decoder, **made)
        self.tokenizer: Tokenizer | None = None
        self.folder: Path | None = None

    @classmethod
    def random(
        cls,
        config: FlashVLConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        weights: str = "bf16",
        layout: str = "auto",
    ) -> FlashVL:
        """Seeded random weights: the same for every `weights`, "bf16" (kept in `dtype`), "int8" or
        "int4", then packed. layout: as in `from_pretrained`."""
        place = resolve_device(device)
        check_dtype(dtype)
        check_format(weights)
        model = cls(config, "meta", dtype)
        fill(model, RandomSource(model, seed), place, dtype, weights, layout)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        weights: str = "bf16",
        layout: str = "auto",
    ) -> FlashVL:
        """A model from a folder in the released layout, or "tiny", the packaged one.

        Weights are converted to `dtype` and packed (weights "int8" or "int4") tensor by tensor.
        layout: how matrices lie in memory. "panels" is the order of the CPU kernels, in buffers;
        "rows" are plain [out, in] parameters; "auto" takes panels where those kernels run. Panels
        come back to rows by `requires_grad_()`.
        CheckpointError lists every key that does not fit.
        """
        place = resolve_device(device)
        check_dtype(dtype)
        check_format(weights)
        folder = checkpoint.find(path)
        model = cls(checkpoint.read_config(folder), "meta", dtype)
        checkpoint.load(model, folder, place, dtype, weights, layout)
        model.tokenizer = checkpoint.read_tokenizer(folder, model.config.decoder.vocab)
        model.folder = folder
        return model.eval()

    def load_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copies tensors under released key names (llm.*, vit.*, adp.*) into this model."""
        checkpoint.load_state(self, state_dict)

    def released_state(self) -> dict[str, Tensor]:
        """The weights under released key names, what `load_weights` takes: views of plain
        parameters, copies of panels."""
        return dict(checkpoint.state(self))

    def save_pretrained(self, path: str | Path, shard_bytes: int = 5_000_000_000) -> None:
        """Writes the released layout: config.json, weights (in shards where they are larger than
        `shard_bytes`, with an index), and the tokenizer files the model was loaded with."""
        checkpoint.save(self, Path(path), shard_bytes)

    @property
    def device(self) -> torch.device:
        return self.decoder.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.table.dtype

    def embed_images(self, tiles: Tensor, grid: TileGrid | None = None) -> Tensor:
        """Decoder rows [B, tokens, hidden] of B images of one grid.

        tiles: pixels [B*T, 3, S, S] or patch rows [B*T, t*t, 3*p*p], T tiles an image, row-major.
        grid: None is one tile an image.
        """
        policy = self.config.image
        grid = policy.grid(1, 1) if grid is None else grid
        if tiles.shape[0] % grid.tiles:
            raise ValueError(
                f"tiles has {tiles.shape[0]} tiles, but grid {grid.rows}x{grid.cols} has "
                f"{grid.tiles} an image; pass whole images and their grid"
            )
        how, size = policy.compression_for(grid), policy.units(grid)
        if not policy.stitch:
            rows = self.adapter(self.vision(tiles), how, size=size)
            return rows.reshape(-1, grid.tiles * rows.shape[1], rows.shape[2])
        if grid.rule == "crop":
            return self.adapter(self.vision.stitched(tiles, grid), how, size=size)
        return self.adapter(self.vision(tiles), how, grid=grid)

    def embed_image(self, pixel_values: Tensor, grid: TileGrid | None = None) -> Tensor:
        """Decoder rows [tokens, hidden] of one image: `embed_images` without the batch."""
        rows = self.embed_images(pixel_values, grid)
        if rows.shape[0] != 1:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[0]} tiles, which is {rows.shape[0]} images "
                "of this grid; pass the grid they were cut with, or use embed_images"
            )
        return rows[0]

    def embed(self, input_ids: Tensor, image_rows: Tensor | None = None) -> Tensor:
        """Embeddings [..., hidden] of int64 ids, with `image_rows` [M, hidden] at the sentinels."""
        rows = self.decoder.embed(input_ids.to(self.device))
        if image_rows is None:
            image_rows = rows.new_empty(0, rows.shape[-1])
        return fvk.merge_image_tokens(rows, input_ids.to(self.device), image_rows)

    @torch.no_grad()
    def prefill(
        self,
        embeds: Tensor | Sequence[Tensor],
        cache: KVCache | None = None,
        chunk: int | None = None,
        capacity: int | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Logits after the last row, and the cache: ([vocab], cache) for embeds [n, hidden].

        A sequence of embeds of unequal length is a batch and gives [B, vocab]. cache: continue it.
        chunk: rows a pass, to bound memory; None runs all at once. capacity: positions of a new
        cache (it grows when it is full).
        """
        states, cache = self.prefill_states(embeds, cache, chunk, capacity)
        logits = self.decoder.logits(states)
        return (logits[0] if isinstance(embeds, Tensor) else logits), cache

    @torch.no_grad()
    def prefill_states(
        self,
        embeds: Tensor | Sequence[Tensor],
        cache: KVCache | None = None,
        chunk: int | None = None,
        capacity: int | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Like `prefill`, but the decoder's last states [B, hidden] for `decoder.greedy`."""
        rows = [embeds] if isinstance(embeds, Tensor) else list(embeds)
        for index, part in enumerate(rows):
            if part.dim() != 2 or not len(part) or part.shape[1] != self.config.decoder.dim:
                raise ValueError(
                    f"embeds {index} has shape {tuple(part.shape)}; prefill needs "
                    f"[n, {self.config.decoder.dim}] with n of at least 1"
                )
        if not rows:
            raise ValueError("embeds is an empty sequence; prefill needs at least one prompt")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; needs at least 1 row, or None")
        lengths = [len(part) for part in rows]
        if cache is None:
            most = self.config.decoder.max_positions
            room = capacity or min(max(lengths) + ANSWER_ROOM, most)
            cache = self.decoder.new_cache(len(rows), room)
        _same_batch(cache, len(rows), "embeds")
        starts = list(cache.lengths)
        cache.make_room(max(start + length for start, length in zip(starts, lengths, strict=True)))
        whole = [Span(b, s, n) for b, (s, n) in enumerate(zip(starts, lengths, strict=True))]
        if chunk is None or max(lengths) <= chunk:
            joined = rows[0] if len(rows) == 1 else torch.cat(rows)
            return self.decoder.extend(joined, whole, cache), cache
        last: list[Tensor] = []
        for part, span in zip(rows, whole, strict=True):
            for done in range(0, span.count, chunk):
                piece = part[done : done + chunk]
                at = Span(span.sequence, span.start + done, len(piece))
                states = self.decoder.extend(piece, [at], cache)
            last.append(states)
        return torch.cat(last), cache

    @torch.no_grad()
    def decode_step(self, token_id: int | Sequence[int] | Tensor, cache: KVCache) -> Tensor:
        """Logits after one more token: [vocab] for one id, [B, vocab] for B ids."""
        logits = self.decoder.logits(self._next_states(token_id, cache))
        single = isinstance(token_id, int) or (isinstance(token_id, Tensor) and not token_id.dim())
        return logits[0] if single else logits

    @torch.no_grad()
    def decode_greedy(self, token_id: int | Sequence[int] | Tensor, cache: KVCache) -> Tensor:
        """The most likely ids [B] after one more token; no logits are made."""
        return self.decoder.greedy(self._next_states(token_id, cache))

    def explain_decode(self, cache: KVCache) -> str:
        """How the last step on `cache` ran: "a tape of N calls", "a CUDA graph", or "op by op: "
        and the reason."""
        return recorded_step.explain(cache)

    def _next_states(self, token_id: int | Sequence[int] | Tensor, cache: KVCache) -> Tensor:
        # On the host first: to read ids back from a GPU would wait for everything queued there.
        ids = torch.as_tensor(token_id).reshape(-1)
        _same_batch(cache, len(ids), "token_id")
        given = ids.tolist()
        if min(given) < 0:
            raise ValueError(f"token_id is {given}; a step needs ids of at least 0")
        cache.make_room(cache.longest + 1)
        spans = [Span(b, length, 1) for b, length in enumerate(cache.lengths)]
        return self.decoder.extend(self.decoder.embed(ids.to(self.device)), spans, cache)

    def generate(self, images: Any, messages: Any, **options: Any) -> Result:
        """Answer `messages` about `images`; see `flashvl.generate.generate` for the options."""
        from flashvl import generate

        return generate.generate(self, images, messages, **options)

    def chat(self, image: Any, messages: Any, **options: Any) -> str:
        """The released `model.chat`: the answer as text; see `flashvl.generate.chat`."""
        from flashvl import generate

        return generate.chat(self, image, messages, **options)


def _same_batch(cache: KVCache, batch: int, name: str) -> None:
    if cache.batch != batch:
        raise ValueError(
            f"{name} has {batch} sequences, but the cache holds {cache.batch}; "
            "pass one for each sequence of the cache"
        )
