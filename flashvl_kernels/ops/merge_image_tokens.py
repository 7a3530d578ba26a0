"""Image rows written into the text embeddings, at the sentinel ids.

Flash-VL's prompts carry -200 for the first and -201 for every further token of an image (the
released `-200` of LLaVA, extended). A negative id is only ever compared, never used as an index.
Counts are checked where values can be looked at: in eager mode on the CPU. Elsewhere a sentinel
beyond the last image row keeps its embedding, and image rows left over are not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes

SENTINELS = (-200, -201)


def check(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> None:
    op = "merge_image_tokens"
    checks.at_least_1d(op, "embeds", embeds)
    checks.is_float(op, "embeds", embeds)
    checks.is_index(op, "input_ids", input_ids)
    checks.shape(op, "input_ids", input_ids, embeds.shape[:-1], "embeds without its last axis")
    checks.same_device(op, "input_ids", input_ids, embeds, "embeds")
    checks.rank(op, "image_rows", image_rows, "[M, hidden]")
    if image_rows.shape[1] != embeds.shape[-1]:
        checks.fail(
            op,
            "image_rows",
            f"has {image_rows.shape[1]} channels",
            f"{embeds.shape[-1]}, the channels of embeds",
            "Project the image rows to the decoder's hidden size first.",
        )
    checks.same_dtype(op, "image_rows", image_rows, embeds, "embeds")


def _is_sentinel(ids: Tensor) -> Tensor:
    return (ids == SENTINELS[0]) | (ids == SENTINELS[1])


def check_values(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> None:
    ids = input_ids.reshape(-1)
    sentinels = _is_sentinel(ids)
    strange = ((ids < 0) & ~sentinels).nonzero()
    if len(strange) > 0:
        place = int(strange[0])
        checks.fail(
            "merge_image_tokens",
            "input_ids",
            f"holds {int(ids[place])} at position {place}",
            "ids of at least 0, or the image sentinels -200 and -201",
            "Use another mark than a negative id for padding.",
        )
    count = int(sentinels.sum())
    if count != image_rows.shape[0]:
        checks.fail(
            "merge_image_tokens",
            "input_ids",
            f"holds {count} image sentinels for {image_rows.shape[0]} image rows",
            "one sentinel for each image row",
            "Write one -200 and n - 1 times -201 for an image of n tokens.",
        )


def reference(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> Tensor:
    rows = image_rows.shape[0]
    if rows == 0:
        return embeds.clone(memory_format=torch.contiguous_format)
    sentinels = _is_sentinel(input_ids)
    rank = sentinels.reshape(-1).cumsum(0).view(input_ids.shape) - 1
    chosen = image_rows.index_select(0, rank.clamp(0, rows - 1).reshape(-1)).view(embeds.shape)
    merged = torch.where((sentinels & (rank < rows)).unsqueeze(-1), chosen, embeds)
    return merged.contiguous()


def fake(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> Tensor:
    return embeds.new_empty(embeds.shape)


def cost(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> Cost:
    # Each written row is read once, from the embeddings or from the image.
    return Cost(nbytes(embeds, input_ids), nbytes(embeds), 0)


def _ids(m: Maker, *shape: int, images: tuple[tuple[int, int], ...]) -> Tensor:
    """Text ids with images of `length` tokens at flat position `start`."""
    ids = m.integers(0, 1000, *shape)
    for start, length in images:
        ids.view(-1)[start : start + length] = SENTINELS[1]
        ids.view(-1)[start] = SENTINELS[0]
    return ids


def _bench(m: Maker, tokens: int, image: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = _ids(m, tokens, images=((14, image),))
    return m.normal(tokens, hidden), ids, m.normal(image, hidden)


def _not_finite(m: Maker) -> Tensor:
    rows = m.normal(3, 8)
    rows[0], rows[1, 2], rows[2, 5] = float("nan"), float("inf"), -float("inf")
    return rows


SAMPLES = (
    Sample(
        "one image",
        lambda m: call(m.normal(20, 48), _ids(m, 20, images=((4, 9),)), m.normal(9, 48)),
    ),
    Sample(
        "two rows, three images",
        lambda m: call(
            m.normal(2, 12, 32),
            _ids(m, 2, 12, images=((0, 4), (6, 1), (20, 4))),
            m.normal(9, 32),
        ),
    ),
    Sample(
        "more tokens than a block ranks",
        lambda m: call(
            m.normal(1100, 4), _ids(m, 1100, images=((9, 3), (1022, 5), (1090, 2))), m.normal(10, 4)
        ),
        "edge",
    ),
    Sample(
        "image only",
        lambda m: call(m.normal(5, 7), _ids(m, 5, images=((0, 5),)), m.normal(5, 7)),
        "edge",
    ),
    Sample(
        "one id",
        lambda m: call(m.normal(3), _ids(m, 1, images=((0, 1),))[0], m.normal(1, 3)),
        "edge",
    ),
    Sample("no image", lambda m: call(m.normal(6, 8), m.integers(0, 9, 6), m.normal(0, 8)), "edge"),
    Sample(
        "NaN and Inf rows",
        lambda m: call(m.normal(6, 8), _ids(m, 6, images=((1, 3),)), _not_finite(m)),
        "edge",
    ),
    Sample(
        "rows with a gap",
        lambda m: call(
            m.strided(3, 6, 10),
            _ids(m, 3, 12, images=((0, 2), (12, 3)))[:, ::2],
            m.strided(3, 10),
        ),
        "strided",
    ),
    Sample(
        "transposed",
        lambda m: call(m.transposed(8, 16), _ids(m, 8, images=((2, 5),)), m.transposed(5, 16)),
        "strided",
    ),
    Sample(
        "no tokens",
        lambda m: call(m.normal(0, 8), m.integers(0, 9, 0), m.normal(0, 8)),
        "zero",
    ),
    Sample(
        "no channels",
        lambda m: call(m.normal(4, 0), _ids(m, 4, images=((1, 2),)), m.normal(2, 0)),
        "zero",
    ),
    Sample(
        "rows past 2^31",
        lambda m: call(m.far(2, 32), _ids(m, 2, images=((0, 1),)), m.normal(1, 32)),
        "far",
    ),
    Sample(
        "third row past 2^31",
        lambda m: call(m.far(3, 32, stride=2**30), _ids(m, 3, images=((0, 1),)), m.normal(1, 32)),
        "far",
    ),
    Sample(
        "too few image rows",
        lambda m: call(m.normal(9, 8), _ids(m, 9, images=((2, 4),)), m.normal(3, 8)),
        "hostile",
        error="input_ids holds 4 image sentinels for 3 image rows",
    ),
    Sample(
        "too many image rows",
        lambda m: call(m.normal(9, 8), _ids(m, 9, images=((2, 4),)), m.normal(5, 8)),
        "hostile",
        error="input_ids holds 4 image sentinels for 5 image rows",
    ),
    Sample(
        "another negative id",
        lambda m: call(m.normal(3, 8), _ids(m, 3, images=()) * 0 - 100, m.normal(0, 8)),
        "hostile",
        error="input_ids holds -100 at position 0",
    ),
    Sample(
        "int32 ids",
        lambda m: call(m.normal(3, 8), m.integers(0, 9, 3).int(), m.normal(0, 8)),
        "hostile",
        error="input_ids has dtype int32; needs int64",
    ),
    Sample(
        "ids of another shape",
        lambda m: call(m.normal(3, 8), m.integers(0, 9, 4), m.normal(0, 8)),
        "hostile",
        error=r"input_ids has shape \[4\]; needs \[3\]",
    ),
    Sample(
        "image rows of another width",
        lambda m: call(m.normal(3, 8), m.integers(0, 9, 3), m.normal(0, 9)),
        "hostile",
        error="image_rows has 9 channels; needs 8",
    ),
    Sample(
        "image rows of another dtype",
        lambda m: call(m.normal(3, 8), m.integers(0, 9, 3), m.normal(0, 8, dtype=torch.float64)),
        "hostile",
        error="image_rows has dtype float64",
    ),
    Sample(
        "integer embeddings",
        lambda m: call(m.integers(0, 9, 3, 8), m.integers(0, 9, 3), m.normal(0, 8)),
        "hostile",
        error="embeds has dtype int64",
    ),
    Sample(
        "Static, 256 image tokens",
        lambda m: call(*_bench(m, 300, 256, 1536)),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "Dynamic-ISS, 576 image tokens",
        lambda m: call(*_bench(m, 640, 576, 1536)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "64 MiB",
        lambda m: call(*_bench(m, 2**25 // 1536, 2**24 // 1536, 1536)),
        "bench",
        family="stream",
    ),
    Sample(
        "12 tiles and a thumbnail",
        lambda m: call(*_bench(m, 3400, 13 * 256, 2048)),
        "bench",
        family="internvl",
    ),
    Sample(
        "2x2 tiles and the whole image, Qwen2-0.5B",
        lambda m: call(*_bench(m, 3700, 5 * 729, 896)),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="merge_image_tokens",
    schema="(Tensor embeds, Tensor input_ids, Tensor image_rows) -> Tensor",
    check=check,
    check_values=check_values,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": SUPPORTS_ALL,
        "triton": triton.supports("merge_image_tokens"),
    },
)


@SPEC.public
def merge_image_tokens(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> Tensor:
    """Replace the embeddings at the image sentinels -200 and -201 by the image rows, in order.

    embeds: [..., hidden] in bfloat16, float16 or float32. input_ids: int64 [...], read row-major.
    image_rows: [M, hidden], dtype of embeds, one for each sentinel.
    Returns [..., hidden]; embeds is not touched.
    Raises TypeError for dtypes, ValueError for shapes; in eager mode on the CPU also ValueError for
    a count of sentinels other than M and for any other negative id.
    """
    return SPEC(embeds, input_ids, image_rows)
