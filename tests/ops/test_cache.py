"""KVCache: bookkeeping of unequal sequences, bounds, and that slots lead to where views look."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvl_kernels.cache import KVCache
from flashvl_kernels.ops.rope_qkv import rope_qkv


def small(batch: int = 2, capacity: int = 8) -> KVCache:
    return KVCache(3, batch, 1, capacity, 4, dtype=torch.float32)


def test_slots_and_positions_are_right_aligned() -> None:
    cache = small()
    cache.append([2, 5])
    assert cache.slots([3, 1]).tolist() == [2, 3, 4, -1, -1, 8 + 5]
    assert cache.positions([3, 1]).tolist() == [2, 3, 4, 0, 0, 5]
    assert cache.lengths == [2, 5], "asking for slots books nothing"


def test_one_count_means_every_sequence() -> None:
    cache = small()
    cache.append([1, 4])
    cache.append(2)
    assert cache.lengths == [3, 6]
    assert cache.lengths_tensor().tolist() == [3, 6]
    assert cache.slots(1).tolist() == [3, 8 + 6]
    assert (cache.longest, cache.room) == (6, 2)


def test_views_share_memory_and_end_at_the_longest() -> None:
    cache = small()
    cache.append([2, 5])
    k, v = cache.view(1)
    assert k.shape == v.shape == (2, 1, 5, 4)
    assert k.data_ptr() == cache.k[1].data_ptr() and v.data_ptr() == cache.v[1].data_ptr()
    whole = cache.layer(1)
    assert whole[0] is cache.k[1] and whole[1] is cache.v[1]


def test_layers_do_not_share_memory() -> None:
    cache = small()
    for tensor in (*cache.k, *cache.v):
        tensor.zero_()
    cache.k[1].fill_(1.0)
    assert sum(float(t.sum()) for t in (*cache.k, *cache.v)) == cache.k[1].numel()
    assert cache.nbytes == 2 * 3 * (2 * 1 * 8 * 4) * 4


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_rows_written_through_slots_are_read_back_in_order(steps: list[tuple[int, int]]) -> None:
    """Whatever the order of chunks, position p of sequence b holds the p-th row given to it."""
    cache = small(capacity=25)
    cos, sin = torch.ones(25, 2), torch.zeros(25, 2)  # turns nothing
    given_rows: list[list[float]] = [[], []]
    number = 0.0
    for counts in steps:
        slots, positions = cache.slots(counts), cache.positions(counts)
        rows = torch.full((len(slots), 12), float("nan"))
        widest = max(counts)
        for b, count in enumerate(counts):
            for i in range(count):
                number += 1
                rows[b * widest + widest - count + i] = number
                given_rows[b].append(number)
        rope_qkv(rows, cos, sin, positions, 1, 1, cache.layer(2), slots)
        cache.append(counts)
    for b, expected in enumerate(given_rows):
        assert cache.lengths[b] == len(expected)
        for tensor in cache.view(2):
            assert tensor[b, 0, : len(expected), 0].tolist() == expected


def test_a_full_cache_names_capacity_and_need_and_stays_as_it_was() -> None:
    cache = small()
    cache.append([7, 3])
    message = "sequence 0 holds 7 positions and gets 2 more; needs a capacity of 9, has 8"
    for ask in (cache.append, cache.slots, cache.positions):
        with pytest.raises(ValueError, match=message):
            ask(2)
    assert cache.lengths == [7, 3]
    cache.append([1, 5])
    assert cache.room == 0


def test_make_room_keeps_what_is_held_and_at_least_doubles() -> None:
    cache = small()
    cache.append([4, 6])
    held = [torch.randn_like(t) for t in cache.k + cache.v]
    for tensor, values in zip(cache.k + cache.v, held, strict=True):
        tensor.copy_(values)
    before = cache.k[0]
    cache.make_room(8)
    assert cache.capacity == 8 and cache.k[0] is before, "there is room already"
    for positions, capacity in ((9, 16), (50, 50)):
        cache.make_room(positions)
        assert cache.capacity == capacity and cache.lengths == [4, 6]
        for tensor, values in zip(cache.k + cache.v, held, strict=True):
            assert tensor.shape[2] == capacity
            assert torch.equal(tensor[:, :, :6], values[:, :, :6])


def test_truncate_goes_back_and_only_back() -> None:
    cache = small()
    cache.append([4, 6])
    cache.truncate([4, 2])
    assert cache.lengths == [4, 2]
    with pytest.raises(ValueError, match=r"lengths\[1\] is 3; needs 0 to 2"):
        cache.truncate([1, 3])
    assert cache.lengths == [4, 2]
    cache.reset()
    assert cache.lengths == [0, 0]


def test_lengths_given_are_copied() -> None:
    cache = small()
    cache.append([4, 6])
    mine = [1, 2]
    cache.truncate(mine)
    cache.append(1)
    assert mine == [1, 2] and cache.lengths == [2, 3]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1], "counts has 1 entries; needs 2"),
        ([1, 2, 3], "counts has 3 entries; needs 2"),
        ([1, -1], r"counts\[1\] is -1; needs 0 or more"),
        (-1, r"counts\[0\] is -1; needs 0 or more"),
    ],
)
def test_bad_counts(counts: int | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().append(counts)


@pytest.mark.parametrize("name", ["layers", "batch", "kv_heads", "capacity", "head_dim"])
def test_sizes_below_one(name: str) -> None:
    sizes = {"layers": 1, "batch": 1, "kv_heads": 1, "capacity": 1, "head_dim": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; needs at least 1"):
        KVCache(**sizes)


def test_an_integer_cache_is_refused() -> None:
    with pytest.raises(TypeError, match="dtype has dtype int64"):
        KVCache(1, 1, 1, 1, 1, dtype=torch.int64)
