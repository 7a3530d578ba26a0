"""Bytes that must move and FLOPs that must be done by each part of the model.

Weights are read once, in the format they are kept in; activations between ops count nothing, since
a better kernel may keep them in the cache. The decoder's last layer computes its output projection
and MLP for one position only: no other is read after it.
"""

from __future__ import annotations

from torch import Tensor, nn

from flashvl.config import AdapterConfig, DecoderConfig, VisionConfig
from flashvl_kernels.spec import Cost


def held_bytes(*modules: nn.Module) -> int:
    """Bytes of memory behind parameters and buffers, each counted once."""
    found: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def decoder_weights(decoder: nn.Module, table: Tensor, tied: bool) -> int:
    """Bytes of weights a step reads: all but the embedding table, of which it reads a row."""
    return held_bytes(decoder) - (0 if tied else table.untyped_storage().nbytes())


def vision(c: VisionConfig, weights: int, size: int) -> Cost:
    """One tile. weights: their bytes; size: bytes of an activation."""
    tokens, matrices = c.tokens, 2 if c.kind == "siglip2" else 3
    layer = 4 * c.dim**2 + matrices * c.dim * c.mlp
    flops = 2 * tokens * (c.layers * layer + c.patch_values * c.dim)
    flops += c.layers * 4 * tokens**2 * c.dim
    return Cost(weights + 3 * c.tile_px**2 * size, tokens * c.dim * size, flops)


def adapter(c: AdapterConfig, tokens: int, weights: int, size: int) -> Cost:
    """`tokens` rows after compression."""
    flops = 2 * tokens * (c.input * c.inner + c.inner**2 + c.inner * c.output)
    return Cost(weights + tokens * c.input * size, tokens * c.output * size, flops)


def prefill(c: DecoderConfig, rows: int, weights: int, size: int) -> Cost:
    """A prompt of `rows` embeddings, up to the logits of the last one."""
    qkv, rest = _layer(c)
    flops = 2 * (c.layers * rows * qkv + ((c.layers - 1) * rows + 1) * rest + c.dim * c.vocab)
    pairs = (c.layers - 1) * rows * (rows + 1) // 2 + rows
    flops += 4 * pairs * c.heads * c.head_dim
    cache = 2 * c.layers * c.kv_heads * c.head_dim * rows * size
    return Cost(weights + rows * c.dim * size, cache + c.vocab * size, flops)


def decode(c: DecoderConfig, batch: int, past: int, weights: int, size: int) -> Cost:
    """One step of `batch` sequences with `past` positions each before it."""
    qkv, rest = _layer(c)
    flops = 2 * batch * (c.layers * (qkv + rest) + c.dim * c.vocab)
    flops += 4 * batch * c.layers * (past + 1) * c.heads * c.head_dim
    position = 2 * c.layers * c.kv_heads * c.head_dim * size
    return Cost(weights + batch * past * position, batch * (position + c.vocab * size), flops)


def _layer(c: DecoderConfig) -> tuple[int, int]:
    """Weights of the qkv projection, and of the output projection and the MLP."""
    return c.dim * c.qkv_width, c.heads * c.head_dim * c.dim + 3 * c.dim * c.mlp


def together(*costs: Cost) -> Cost:
    """One after the other."""
    parts = [(c.bytes_read, c.bytes_written, c.flops) for c in costs]
    read, written, flops = (sum(column) for column in zip(*parts, strict=True))
    return Cost(read, written, flops)
