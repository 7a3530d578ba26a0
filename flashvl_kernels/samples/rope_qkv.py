"""Sample calls of rope_qkv and rope_qkv_cached."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashvl_kernels.spec import Call, Maker, Sample, call


def _tables(
    m: Maker, rows: int, half: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, half] of Qwen2's frequencies (theta 1e6)."""
    frequencies = 1e6 ** -(torch.arange(half) / half)
    angles = torch.arange(rows)[:, None] * frequencies
    return angles.cos().to(m.device, dtype), angles.sin().to(m.device, dtype)


def _call(
    m: Maker,
    heads: tuple[int, int, int],
    rows: int,
    positions: list[int] | None = None,
    table_rows: int = 40,
    scale: float = 1.0,
) -> Call:
    """heads: (query heads, KV heads, head dim)."""
    query_heads, kv_heads, head_dim = heads
    qkv = m.normal(rows, (query_heads + 2 * kv_heads) * head_dim, scale=scale)
    at = None if positions is None else torch.tensor(positions, dtype=torch.int64, device=m.device)
    return call(qkv, *_tables(m, table_rows, head_dim // 2), at, query_heads, kv_heads)


def _cached(
    m: Maker,
    heads: tuple[int, int, int],
    slots: list[int],
    cache: tuple[int, int] = (2, 8),
    positions: list[int] | None = None,
) -> Call:
    """heads: (query heads, KV heads, head dim); cache: (sequences, capacity)."""
    plain = _call(m, heads, len(slots), positions)
    shape = cache[0], heads[1], cache[1], heads[2]
    plain.kwargs["cache"] = m.normal(*shape), m.normal(*shape)
    plain.kwargs["slots"] = torch.tensor(slots, dtype=torch.int64, device=m.device)
    return plain


def _places(side: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch of a square image."""
    return torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)


def _multimodal(m: Maker) -> Call:
    """Qwen2-VL's M-RoPE: 14 tokens of text, an image of 16x16, and 30 of text. Of a token's 64
    angles, 16 turn with its place in time, 24 with its row and 24 with its column; text has the
    same number for all three. So the tables have a row a token."""
    side, before, after = 16, 14, 30
    rows, columns = _places(side)
    image = torch.stack((torch.zeros_like(rows), rows, columns)) + before
    first, last = torch.arange(before), torch.arange(after) + before + side
    places = torch.cat((first.expand(3, -1), image, last.expand(3, -1)), 1)
    turned = places.T.repeat_interleave(torch.tensor((16, 24, 24)), 1)
    angles = turned * 1e6 ** -(torch.arange(64) / 64)
    made = _call(m, (12, 2, 128), before + side**2 + after)
    return _with(made, cos=angles.cos().to(m.device), sin=angles.sin().to(m.device))


def _patches(m: Maker) -> Call:
    """A layer of Qwen2-VL's encoder on 32x32 patches: 16 heads of 80. Of their 40 angles, half turn
    with the row of a patch and half with its column."""
    side, half = 32, 40
    rows, columns = _places(side)
    frequencies = 1e4 ** -(torch.arange(half // 2) / (half // 2))
    angles = torch.cat((rows[:, None] * frequencies, columns[:, None] * frequencies), 1)
    made = _call(m, (16, 16, 2 * half), side**2)
    return _with(made, cos=angles.cos().to(m.device), sin=angles.sin().to(m.device))


def _not_finite(m: Maker) -> Call:
    made = _call(m, (2, 1, 8), 4)
    made.args[0][0, 3], made.args[0][1, 17], made.args[0][2, 30] = (
        float("nan"), float("inf"), -float("inf"),
    )  # fmt: skip
    return made


def _with(made: Call, **changed: Tensor | tuple[Tensor, Tensor] | int | None) -> Call:
    """`made` with some arguments replaced, by name."""
    names = ("qkv", "cos", "sin", "positions", "heads", "kv_heads")
    named = dict(zip(names, made.args, strict=True)) | made.kwargs | changed
    return Call((), named)


def _table_dtype(m: Maker) -> Call:
    cos, sin = _tables(m, 40, 16, m.dtype)
    return _with(_call(m, (2, 1, 32), 6), cos=cos, sin=sin)


def _strided(m: Maker) -> Call:
    """Every other row of qkv, tables cut out of an interleaved one, positions with a gap."""
    cos, sin = torch.stack(_tables(m, 40, 12), -1).unbind(-1)
    positions = torch.arange(20, device=m.device)[::4] + 3
    return call(m.normal(10, 6 * 24 + 5)[::2, : 6 * 24], cos, sin, positions, 4, 1)


def _cache_views(m: Maker) -> Call:
    """One layer of a cache whose tokens lie outside its heads, fewer positions than reserved."""
    k, v = (m.normal(2, 12, 2, 16).transpose(1, 2)[:, :, :9] for _ in range(2))
    made = _cached(m, (2, 2, 16), [0, 8, -1, 9, 17], (2, 9), [4, 5, 0, 1, 2])
    return _with(made, qkv=m.strided(5, 6 * 16), cache=(k, v))


def _channels_apart(m: Maker) -> Call:
    """Channels of the cache two elements apart, more of them than a vector holds."""
    made = _cached(m, (2, 2, 44), [0, 8, -1, 9, 15], (2, 8))
    k, v = (m.normal(2, 2, 8, 88)[..., ::2] for _ in range(2))
    return _with(made, cache=(k, v))


def _far_cache(m: Maker) -> Call:
    """The second sequence of the keys lies past element 2^31."""
    made = _cached(m, (2, 1, 16), [3, 9, -1, 15])
    return _with(made, cache=(m.far(2, 1, 8, 16), m.normal(2, 1, 8, 16)))


def _refused(name: str, error: str, make: Callable[[Maker], Call]) -> Sample:
    return Sample(name, make, "hostile", error)


SAMPLES = (
    Sample("Qwen2 heads", lambda m: _call(m, (6, 1, 128), 9, list(range(5, 14)))),
    Sample("rows are positions", lambda m: _call(m, (4, 2, 64), 11)),
    Sample("tables in the dtype", _table_dtype),
    Sample("head dim 72, one row", lambda m: _call(m, (3, 3, 72), 1, [39]), "edge"),
    Sample("head dim 80, one position", lambda m: _call(m, (2, 1, 80), 5, [7] * 5), "edge"),
    Sample("head dim 2", lambda m: _call(m, (3, 1, 2), 6), "edge"),
    Sample("head dim 14", lambda m: _call(m, (1, 1, 14), 3, [2, 0, 1]), "edge"),
    Sample("large values", lambda m: _call(m, (2, 1, 16), 3, scale=1e3), "edge"),
    Sample("NaN and Inf", _not_finite, "edge"),
    Sample("gaps everywhere", _strided, "strided"),
    Sample("no rows", lambda m: _call(m, (2, 1, 8), 0, []), "zero"),
    Sample("no rows, no positions", lambda m: _call(m, (2, 1, 8), 0, None, 0), "zero"),
    Sample(
        "rows past 2^31",
        lambda m: _with(_call(m, (2, 1, 16), 2), qkv=m.far(2, 64)),
        "far",
    ),
    Sample(
        "third row past 2^31",
        lambda m: _with(_call(m, (2, 1, 16), 3), qkv=m.far(3, 64, stride=2**30)),
        "far",
    ),
    _refused(
        "three axes",
        r"qkv has shape \[1, 3, 32\]; needs 2 axes",
        lambda m: _with(_call(m, (2, 1, 8), 3), qkv=m.normal(1, 3, 32)),
    ),
    _refused(
        "integers",
        "qkv has dtype int64",
        lambda m: _with(_call(m, (2, 1, 8), 3), qkv=m.integers(0, 9, 3, 32)),
    ),
    _refused(
        "no heads",
        "heads is 0; needs at least 1",
        lambda m: _with(_call(m, (2, 1, 8), 3), heads=0),
    ),
    _refused(
        "columns that do not split",
        r"qkv has 32 columns; needs \(heads \+ 2 kv_heads\) = 5",
        lambda m: _with(_call(m, (2, 1, 8), 3), heads=3),
    ),
    _refused(
        "odd head dimension",
        "an even head dimension",
        lambda m: _call(m, (2, 1, 7), 3),
    ),
    _refused(
        "tables of the whole head dimension",
        r"cos has shape \[40, 8\]; needs \[40, 4\]",
        lambda m: _with(_call(m, (2, 1, 8), 3), cos=m.normal(40, 8, dtype=torch.float32)),
    ),
    _refused(
        "sin of another length",
        r"sin has shape \[39, 4\]; needs \[40, 4\]",
        lambda m: _with(_call(m, (2, 1, 8), 3), sin=m.normal(39, 4, dtype=torch.float32)),
    ),
    _refused(
        "tables of another dtype",
        "cos has dtype float64 but qkv has float32",
        lambda m: _with(_call(m, (2, 1, 8), 3), cos=m.normal(40, 4, dtype=torch.float64)),
    ),
    _refused(
        "a position past the tables",
        "positions has 40; needs 0 to 39",
        lambda m: _call(m, (2, 1, 8), 3, [0, 40, 1]),
    ),
    _refused(
        "a negative position",
        "positions has -1; needs 0 to 39",
        lambda m: _call(m, (2, 1, 8), 3, [0, 1, -1]),
    ),
    _refused(
        "positions of another length",
        r"positions has shape \[2\]; needs \[3\]",
        lambda m: _call(m, (2, 1, 8), 3, [0, 1]),
    ),
    _refused(
        "more rows than the tables",
        "qkv has 41 rows and no positions; needs at most 40",
        lambda m: _call(m, (2, 1, 8), 41),
    ),
    _refused(
        "slots without a cache",
        "slots is given without a cache",
        lambda m: _with(_call(m, (2, 1, 8), 3), slots=torch.arange(3)),
    ),
    Sample(
        "64 MiB",
        lambda m: _call(m, (12, 2, 128), 2**25 // 2048, None, 32768),
        "bench",
        family="stream",
    ),
    Sample(
        "Qwen2 prefill of 300",
        lambda m: _call(m, (12, 2, 128), 300, None, 32768),
        "bench",
        family="flash-vl",
    ),
    Sample("Qwen2-VL prefill of 300, M-RoPE", _multimodal, "bench", family="qwen2-vl"),
    Sample("Qwen2-VL ViT, 32x32 patches", _patches, "bench", family="qwen2-vl"),
    Sample(
        "InternLM2.5-1.8B prefill of 300",
        lambda m: _call(m, (16, 8, 128), 300, None, 32768),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-0.5B prefill of 800",
        lambda m: _call(m, (14, 2, 64), 800, None, 32768),
        "bench",
        family="llava-onevision",
    ),
)

SAMPLES_CACHED = (
    Sample("prompt of one sequence", lambda m: _cached(m, (6, 1, 128), list(range(3, 8)), (1, 8))),
    Sample(
        "two sequences, padding skipped",
        lambda m: _cached(m, (4, 2, 64), [-1, 2, 3, 8, 9, 10], (2, 8), [0, 2, 3, 0, 1, 2]),
    ),
    Sample("one new row", lambda m: _cached(m, (3, 3, 72), [15], positions=[7]), "edge"),
    Sample("every row skipped", lambda m: _cached(m, (2, 1, 8), [-1, -1]), "edge"),
    Sample("slots in any order", lambda m: _cached(m, (2, 1, 14), [9, 0, 15, 7]), "edge"),
    Sample("views of a cache", _cache_views, "strided"),
    Sample("channels with a gap", _channels_apart, "strided"),
    Sample("no rows", lambda m: _cached(m, (2, 1, 8), []), "zero"),
    Sample("sequences past 2^31", _far_cache, "far"),
    Sample("no capacity", lambda m: _cached(m, (2, 1, 8), [-1, -1], (1, 0)), "zero"),
    _refused(
        "slot past the cache",
        "slots has 16; needs -1 to 15",
        lambda m: _cached(m, (2, 1, 8), [3, 16]),
    ),
    _refused(
        "slot below -1",
        "slots has -2; needs -1 to 15",
        lambda m: _cached(m, (2, 1, 8), [3, -2]),
    ),
    _refused(
        "cache without slots",
        "cache is given without slots",
        lambda m: _with(_cached(m, (2, 1, 8), [3]), slots=None),
    ),
    _refused(
        "slots of another length",
        r"slots has shape \[2\]; needs \[1\]",
        lambda m: _with(_cached(m, (2, 1, 8), [3]), slots=torch.arange(2)),
    ),
    _refused(
        "cache with another number of heads",
        r"k_cache has shape \[2, 2, 8, 8\]; needs \[2, 1, 8, 8\]",
        lambda m: _with(
            _cached(m, (2, 1, 8), [3]), cache=(m.normal(2, 2, 8, 8), m.normal(2, 2, 8, 8))
        ),
    ),
    _refused(
        "values of another capacity",
        r"v_cache has shape \[2, 1, 9, 8\]; needs \[2, 1, 8, 8\]",
        lambda m: _with(
            _cached(m, (2, 1, 8), [3]), cache=(m.normal(2, 1, 8, 8), m.normal(2, 1, 9, 8))
        ),
    ),
    _refused(
        "cache of another dtype",
        "k_cache has dtype float64 but qkv has float32",
        lambda m: _with(
            _cached(m, (2, 1, 8), [3]),
            cache=(m.normal(2, 1, 8, 8, dtype=torch.float64), m.normal(2, 1, 8, 8)),
        ),
    ),
    _refused(
        "a gradient is wanted",
        "qkv wants a gradient",
        lambda m: _with(_cached(m, (2, 1, 8), [3]), qkv=torch.zeros(1, 32, requires_grad=True)),
    ),
    Sample(
        "Qwen2 prefill of 300",
        lambda m: _cached(m, (12, 2, 128), list(range(300)), (1, 1024), [0] * 300),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "Qwen2 decode",
        lambda m: _cached(m, (12, 2, 128), [300], (1, 1024), [30]),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "InternLM2.5-1.8B decode",
        lambda m: _cached(m, (16, 8, 128), [300], (1, 1024), [30]),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-0.5B decode",
        lambda m: _cached(m, (14, 2, 64), [300], (1, 1024), [30]),
        "bench",
        family="llava-onevision",
    ),
)
