"""Launch plans of the ops around tokens for the figures of five GPUs."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda import argmax_head, compress_tokens, image_plan, image_to_patches
from flashvl_kernels.cuda.argmax_head import HeadPlan
from flashvl_kernels.cuda.compress_tokens import CompressPlan
from flashvl_kernels.cuda.device import A100, B200, DEVICES, H100, L4, RTX_4090, Device
from flashvl_kernels.cuda.launch import Prepared
from flashvl_kernels.norm import Norm
from flashvl_kernels.ops.image_to_patches import _filter_weights, _rows_first
from flashvl_kernels.spec import REGISTRY, capture
from flashvl_kernels.tiles import TileGrid

CPU = torch.device("cpu")


def prepared(how: Compression, *shape: int, device: Device = H100, **kwargs: object) -> Prepared:
    """A call of compress_tokens."""
    spec = REGISTRY["compress_tokens"]
    x = torch.zeros(shape, dtype=torch.bfloat16)
    _, flat = capture(spec.function, x, how, **kwargs)
    return compress_tokens.prepare(flat, device)


def test_a_shuffled_token_of_the_models_is_two_or_three_vectors_a_thread() -> None:
    """4 x 1152 channels are 576 vectors, 4 x 1536 are 768, 4 x 1024 are 512; each is a block."""
    assert compress_tokens.plan(256, 4608, 8, False, H100) == CompressPlan(8, True, 256, 288)
    assert compress_tokens.plan(7168, 4608, 8, False, H100) == CompressPlan(8, True, 7168, 192)
    assert compress_tokens.plan(1792, 6144, 8, False, H100) == CompressPlan(8, True, 1792, 256)
    assert compress_tokens.plan(3328, 4096, 8, False, H100) == CompressPlan(8, True, 3328, 256)


def test_a_pooled_token_is_a_vector_a_thread() -> None:
    assert compress_tokens.plan(576, 1536, 8, True, H100) == CompressPlan(8, True, 576, 192)
    assert compress_tokens.plan(576, 4096, 8, True, H100) == CompressPlan(8, False, 576, 384)


@pytest.mark.parametrize("columns", [1, 77, 96, 4608, 6144, 6152, 18432, 10**6])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("rows", [1, 256, 2**31 - 1])
def test_every_compress_plan_covers_its_rows(rows: int, columns: int, pooled: bool) -> None:
    for vector in (1, 4, 8):
        found = compress_tokens.plan(rows, columns, vector, pooled, H100)
        assert found.grid == rows
        assert found.threads % 32 == 0 and found.threads <= compress_tokens.THREADS
        if found.held:
            held = found.threads * compress_tokens.HELD[pooled] * vector
            assert vector > 1 and held >= columns


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_one_launch_but_where_normalised_tokens_are_pooled(device: Device) -> None:
    norm = Norm(torch.zeros(64, dtype=torch.bfloat16))
    pooled = Compression("average", norm_first=True)
    assert len(prepared(Compression(), 1, 64, 64, device=device).launches) == 1
    first = Compression(norm_first=True)
    assert len(prepared(first, 1, 64, 64, device=device, norm=norm).launches) == 1
    assert len(prepared(pooled, 1, 64, 64, device=device, norm=norm).launches) == 2


@pytest.mark.parametrize(
    ("how", "order"),
    [
        (Compression(), compress_tokens.IN_ORDER),
        (Compression(order="channel_row_col"), compress_tokens.INTERLEAVED),
        (Compression(order="channel_row_col", factor=4), compress_tokens.SCATTERED),
    ],
)
def test_orders(how: Compression, order: int) -> None:
    """Four lanes put Unfold's order right for blocks of 2x2."""
    (launch,) = prepared(how, 1, 64, 64).launches
    assert launch.arguments.order == order


def test_what_compress_tokens_refuses() -> None:
    shuffle = *Compression().flat(), -1, -1, 0
    x = torch.empty(2**15, 2**18, 1, device="meta", dtype=torch.bfloat16)
    assert compress_tokens.why_not(x[:1], None, None, 1e-6, *shuffle) is None
    told = compress_tokens.why_not(x, None, None, 1e-6, *shuffle)
    assert told == f"{2**33} tokens; the CUDA kernel takes up to 2^31 - 1"
    wide = Compression(factor=2**15, pad=True)
    told = compress_tokens.why_not(
        x[:1, :1].expand(1, 1, 4), None, None, 1e-6, *wide.flat(), 1, 1, 0
    )
    assert told == f"{2**32} channels an output; the CUDA kernel takes fewer than 2^31"


COLUMNS = (True, True)
"""The last pass goes down the columns of the result, and those of the source."""


def test_a_photo_is_staged_by_warps_of_rows() -> None:
    """4000 pixels to 512: 32 taps and up to 3 to begin at a multiple of 4."""
    filter = image_plan.axis_filter(4000, 512, CPU)
    assert filter.taps == 36
    found = image_plan.resize_plan(filter, 512, 3000, False)
    assert found is not None and (found.staged.outputs, found.staged.lines) == (32, 32)
    assert found.shared_bytes <= image_plan.SHARED_WANTED
    second = image_plan.patches_plan(image_plan.axis_filter(3000, 512, CPU), 32, 16, *COLUMNS, 2)
    assert second is not None and second.tokens == 4
    assert (second.staged.lines, second.staged.outputs) == (64, 16)


@pytest.mark.parametrize(("size", "out"), [(1, 15), (24, 24), (37, 20), (4000, 512), (10000, 56)])
@pytest.mark.parametrize("patch", [1, 14, 16, 32])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_staged_positions_hold_what_every_block_reads(
    size: int, out: int, patch: int, columns: bool, down: bool
) -> None:
    filter = image_plan.axis_filter(size, out, CPU)
    first = image_plan.resize_plan(filter, out, 3000, down)
    last = image_plan.patches_plan(filter, 8, patch, columns, down, 2)
    assert first is not None and last is not None
    assert first.shared_bytes <= image_plan.SHARED_LIMIT
    assert last.staged.shared_bytes + last.out_bytes <= image_plan.SHARED_LIMIT
    for found in (first.staged, last.staged):
        assert found.pitch >= 3 * (found.lines if down else found.positions)
        assert found.pitch // (128 // found.unit) % 2 == 1
        for begin in range(out):
            stop = int(filter.starts[min(begin + found.outputs, out) - 1]) + filter.taps
            assert stop <= int(filter.starts[begin]) + found.positions


@pytest.mark.parametrize(
    ("rows", "unit"), [(1, 8), (14, 16), (16, 16), (24, 8), (28, 32), (56, 32)]
)
def test_lanes_along_rows_leave_an_eighth_idle_at_most_or_are_eight(rows: int, unit: int) -> None:
    filter = image_plan.axis_filter(300, 64, CPU)
    assert filter.tile(16, rows, False).unit == unit


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize(
    ("height", "width", "side", "tiles", "patch"),
    [
        (3000, 4000, (512, 512), 1, 16),
        (3000, 4000, (1232, 1624), 12, 14),
        (720, 1280, (896, 1344), 6, 14),
        (2400, 1080, (896, 448), 2, 14),
    ],
)
def test_both_passes_of_the_models_are_one_launch_that_fills_the_device(
    device: Device, height: int, width: int, side: tuple[int, int], tiles: int, patch: int
) -> None:
    """Two or more blocks a multiprocessor, none of it idle, and at most 1.5 times the bytes of the
    image read, the ends of sectors included: a photo reduced to a tile, to twelve of them, a
    screenshot enlarged, one of a telephone, whose rows come first."""
    rows, columns = (
        image_plan.axis_filter(size, out, CPU)
        for size, out in zip((height, width), side, strict=True)
    )
    down = not _rows_first(height, width, *side)
    filters = (columns, rows) if down else (rows, columns)
    shape = 32, tiles, patch, down, down, 2
    found = image_plan.image_plan(*filters, *shape, device.multiprocessors)
    assert found is not None
    assert found.idle_threads == 0
    assert 2 * (found.shared_bytes + 1024) <= device.shared_bytes_per_multiprocessor
    blocks = tiles * -(-32 // found.tokens) * -(-32 // found.rows)
    assert blocks >= device.multiprocessors
    reduction = height * width / (side[0] * side[1])
    outputs = found.tokens * found.rows * 3 * patch * patch
    assert found.bytes_read / outputs <= 1.5 * max(reduction, 1.0)


def test_a_small_image_is_spread_over_the_device() -> None:
    """16 tokens are 16 blocks; of two tiles of 64, those of an L4 are larger than an H100's."""
    small, large = (image_plan.axis_filter(300, out, CPU) for out in (64, 128))
    found = image_plan.image_plan(small, small, 4, 1, 16, *COLUMNS, 2, 132)
    assert found is not None and (found.tokens, found.rows) == (1, 1)
    sizes = [image_plan.image_plan(large, large, 8, 2, 16, *COLUMNS, 2, n) for n in (58, 132)]
    areas = [found.tokens * found.rows for found in sizes if found is not None]
    assert len(areas) == 2 and areas[0] >= areas[1]


def test_an_image_reduced_thirty_times_takes_two_launches() -> None:
    filter = image_plan.axis_filter(2000, 64, CPU)
    assert image_plan.image_plan(filter, filter, 4, 1, 16, *COLUMNS, 2, 132) is None
    image, half = torch.empty(2000, 2000, 3, dtype=torch.uint8), [0.5, 0.5, 0.5]
    flat = image, *TileGrid(1, 1, 4).flat(), half, half, 16, torch.float32
    assert image_to_patches.why_not(*flat) is None
    names = [each.kernel.expression for each in image_to_patches.prepare(flat, H100).launches]
    assert names == ["resize_kernel<3>", "patches_kernel<float>"]


def test_the_filter_is_pillows_moved_to_multiples_of_four() -> None:
    filter = image_plan.axis_filter(1000, 300, CPU)
    first, weight = _filter_weights(1000, 300)
    assert bool((filter.first % 4 == 0).all())
    for i in range(300):
        lead = int(first[i]) - int(filter.first[i])
        expected = torch.zeros(filter.taps, dtype=torch.int32)
        expected[lead : lead + weight.shape[1]] = weight[i].to(torch.int32)
        assert torch.equal(filter.weight[i], expected)


def test_an_image_reduced_too_far_is_refused() -> None:
    image = torch.empty(1, 2**24, 3, dtype=torch.uint8)
    half = [0.5, 0.5, 0.5]
    told = image_to_patches.why_not(image, *TileGrid(1, 1, 1).flat(), half, half, 1, torch.float32)
    assert told is not None and "reduce the image first" in told


@pytest.mark.parametrize(
    ("device", "blocks"), [(H100, 396), (A100, 324), (L4, 116), (RTX_4090, 256), (B200, 444)]
)
@pytest.mark.parametrize("rows", [8])
def test_the_head_of_the_2b_model_fills_every_device(
    device: Device, blocks: int, rows: int
) -> None:
    """Eight rows of 1536 channels are 24 KiB, their keys 8: three blocks, two on an L4."""
    found = argmax_head.plan(rows, 151936, 1536, 2, "bf16", device)
    assert found == HeadPlan(rows, 1, blocks, rows * (1536 * 2 + 130 * 8))


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 5, 9, 1000])
@pytest.mark.parametrize("columns", [0, 77, 1536, 8192, 24000])
@pytest.mark.parametrize("format", argmax_head.FORMATS)
def test_every_head_plan_fits(device: Device, rows: int, columns: int, format: str) -> None:
    for itemsize in (2, 4):
        if argmax_head.shared_bytes(1, columns, itemsize, format) > argmax_head.LEAST_SHARED:
            continue
        found = argmax_head.plan(rows, 32000, columns, itemsize, format, device)
        assert found.groups * found.rows >= rows > (found.groups - 1) * found.rows
        assert 1 <= found.blocks <= 250 and found.rows <= argmax_head.ROWS
        limit = device.shared_bytes_per_block - argmax_head.STATIC_BYTES
        assert found.shared_bytes <= limit


def test_wide_hidden_sizes_take_fewer_rows_at_a_time() -> None:
    """8192 channels in bf16: eight rows are 136 KiB, which an H100 has and an L4 has not."""
    assert argmax_head.plan(8, 128000, 8192, 2, "bf16", H100).rows == 8
    assert argmax_head.plan(8, 128000, 8192, 2, "bf16", L4).rows == 5


@pytest.mark.parametrize(
    ("columns", "format", "k", "told"),
    [
        (1536, "int8_panels", 1, "w_vocab is in panels"),
        (1536, "bf16", 129, "k is 129; the CUDA kernel keeps up to 128 tokens"),
        (10**5, "int4", 1, "rows have 100000 channels; the CUDA kernel keeps one in 98304 bytes"),
    ],
)
def test_what_argmax_head_refuses(columns: int, format: str, k: int, told: str) -> None:
    x, w = torch.empty(1, columns, dtype=torch.bfloat16), torch.empty(200, 1)
    reason = argmax_head.why_not(x, x[0], 1e-6, w, None, format, columns, k)
    assert reason is not None and reason.startswith(told)
