"""Mutations of the attention kernels: each must be seen, as a finding, a count or a wrong result.

As test_mutations.py: a mutation is a textual patch, and one that no longer applies fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.cuda.device import L4
from flashvl_kernels.cuda.launch import Prepared
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_mutations import Fault, check_seen
from tests.simt.test_ops import flat_call

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


def sample(op: str, name: str) -> tuple[object, ...]:
    """The schema arguments of a sample, in bf16."""
    spec = REGISTRY[op]
    return flat_call(spec, next(s for s in spec.samples if s.name == name), torch.bfloat16)


def fault(op: str, name: str, file: str, old: str, new: str, seen: str) -> Fault:
    return Fault(op, file, old, new, seen, sample(op, name))


TILE, CAUSAL = "tile_attention", "causal_attention"
STITCHED, DECODE = "stitched_tile_attention", "decode_attention"

FAULTS = {
    "copies of keys not waited for": fault(
        TILE, "across kernel blocks", "flash_mma.cuh",
        "cp_async_wait<0>();\n      sync();\n      copy_keys(v_", "sync();\n      copy_keys(v_",
        "missing_cp_async_wait",
    ),
    "no barrier before the values are replaced": fault(
        TILE, "across kernel blocks", "flash_mma.cuh",
        "sync();\n      copy_keys(v_", "copy_keys(v_", "shared_race",
    ),
    "no barrier before the keys are replaced": fault(
        TILE, "across kernel blocks", "flash_mma.cuh",
        "sync();\n      if (key + kKeys < last)", "if (key + kKeys < last)", "shared_race",
    ),
    "the halves of a key fragment swapped": fault(
        TILE, "SigLIP2 heads", "flash_mma.cuh", "2 * c + l / 8 % 2", "2 * c + (l / 8 % 2 ^ 1)",
        "output",
    ),
    "rows of shared memory not permuted": fault(
        TILE, "SigLIP2 heads", "attention_rows.cuh", "? row % 8 : row / 4 % 2", "? row % 8 : 0",
        "bank_conflicts",
    ),
    "outputs not rescaled": fault(
        TILE, "maxima that rise", "flash_mma.cuh",
        "o_[i / 2][n][i % 2 * 2] *= keep;", "", "output",
    ),
    "padding of the head dimension not filled": fault(
        TILE, "SigLIP2 heads", "attention_rows.cuh",
        "offset >= 0 && chunk * Rows::kVec < channels", "offset >= 0", "output",
    ),
    "packed tiles all start at row 0": fault(
        TILE, "packed tiles", "tile_attention.cuh", "start += length;", "", "output"
    ),
    "a tile's offset of 32 bits": fault(
        TILE, "tiles past 2^31", "tile_attention.cuh",
        "return at.tile * x.batch", "return static_cast<int32_t>(at.tile * x.batch)",
        "output",  # a negative offset is a row that is not there
    ),
    "a key too many": fault(
        CAUSAL, "a later chunk", "causal_attention.cuh",
        "before + query_of(row) + 1", "before + query_of(row) + 2", "output",
    ),
    "the mask off by one column": fault(
        CAUSAL, "a later chunk", "flash_mma.cuh",
        "n * 8 + e >= limit", "n * 8 + e > limit", "output",
    ),
    "no barrier without keys": fault(
        CAUSAL, "an empty sequence", "flash_mma.cuh",
        "if (first >= last) sync();", "", "shared_race",
    ),
    "query heads of another KV head": fault(
        CAUSAL, "a later chunk", "causal_attention.cuh", "(kv_head * group + first", "(first",
        "output",
    ),
    "an odd overlap cut one too early": fault(
        STITCHED, "two images", "stitched_tile_attention.cuh", "(overlap + 1) / 2", "overlap / 2",
        "output",
    ),
    "shares of the two tiles swapped": fault(
        STITCHED, "linear", "tiling.cuh", "way == 0 ?", "way == 1 ?", "output",
    ),
    "a blend that reads before it wrote": fault(
        STITCHED, "mean", "stitched_tile_attention.cuh",
        "if (source > 0) o +=", "o +=", "shared_uninitialised",
    ),
    "no barrier before the merge": fault(
        DECODE, "unequal lengths", "decode_attention.cuh",
        "sync_block();  // keys and queries make room", "// keys and queries make room",
        "shared_race",
    ),
    "sums of the parts not weighed": fault(
        DECODE, "keys and heads in several blocks", "decode_attention.cuh",
        "sum = fmaf(weight, s[1], sum);", "sum += s[1];", "output",
    ),
    "merged by the last block but one": fault(
        DECODE, "keys and heads in several blocks", "arrival.cuh",
        "== blocks - 1", "== blocks - 2", "output",
    ),
    "keys past the length": fault(
        DECODE, "unequal lengths", "decode_attention.cuh",
        "min(first + share / kTeams, length)", "first + share / kTeams", "output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path) -> None:
    check_seen(FAULTS[name], name, tmp_path)


def test_scratch_holds_nothing_of_an_earlier_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else "merged by the last block but one" reads what a right call left there, and is right."""
    seen: list[Prepared] = []
    monkeypatch.setattr(simt, "run", lambda prepared, *_: seen.append(prepared) or simt.Result())
    simt.call(REGISTRY[DECODE], sample(DECODE, "keys and heads in several blocks"), L4)
    (prepared,) = seen
    assert prepared.tensors["partial"].isnan().all()
    assert prepared.tensors["softmax"].isnan().all()
    assert not prepared.tensors["counters"].any()
    assert not torch.are_deterministic_algorithms_enabled()
