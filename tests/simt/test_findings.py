"""Each kind of finding, by a kernel that has the fault, and the same kernel without it."""

from __future__ import annotations

import pytest
import torch

from tests.simt.mini import floats, kinds, mini

STAGE = "FLASHVL_SHARED(float, s, 64); s.store(t, args.in.load(t));"
COPY = """FLASHVL_SHARED(float, s, 128);
  cp_async_16(s + 4 * t, args.in + 4 * t); cp_async_commit();"""

# kind: (threads, faulty body, the same without the fault)
FAULTS = {
    "global_out_of_bounds": (
        32,
        "args.out.store(t, args.in.load(t + 97));",
        "args.out.store(t, args.in.load(t + 96));",
    ),
    "global_out_of_bounds, vector": (
        32,
        "args.out.store(t, args.in.load<4>(4 * t + 4)[0]);",
        "args.out.store(t, args.in.load<4>(4 * t)[0]);",
    ),
    "global_out_of_bounds, negative": (
        32,
        "args.out.store(t, args.in.load(t - 1));",
        "args.out.store(t, t ? args.in.load(t - 1) : 0.0f);",
    ),
    "global_misaligned": (
        16,
        "args.out.store(t, args.in.load<4>(4 * t + 2)[0]);",
        "args.out.store(t, args.in.load<2>(4 * t + 2)[0]);",
    ),
    "write_to_input": (
        32,
        "Global<float>{const_cast<float*>(args.in.address)}.store(t, 1.0f);",
        "args.out.store(t, 1.0f);",
    ),
    "shared_out_of_bounds": (
        32,
        "FLASHVL_SHARED(float, s, 31); s.store(t, 1.0f);",
        "FLASHVL_SHARED(float, s, 32); s.store(t, 1.0f);",
    ),
    "shared_out_of_bounds, vector": (
        16,
        "FLASHVL_SHARED(float, s, 62); s.store(4 * t, args.in.load<4>(4 * t));",
        "FLASHVL_SHARED(float, s, 64); s.store(4 * t, args.in.load<4>(4 * t));",
    ),
    "shared_misaligned": (
        8,
        "FLASHVL_SHARED(float, s, 64); s.store(5 * t, args.in.load<4>(4 * t));",
        "FLASHVL_SHARED(float, s, 64); s.store(8 * t, args.in.load<4>(4 * t));",
    ),
    "shared_uninitialised": (
        32,
        "FLASHVL_SHARED(float, s, 64); args.out.store(t, s.load(t));",
        "FLASHVL_SHARED(float, s, 64); s.store(t, 1.0f); args.out.store(t, s.load(t));",
    ),
    "shared_race, read after write, other warp": (
        64,
        STAGE + "sync_warp(); args.out.store(t, s.load(63 - t));",
        STAGE + "sync_block(); args.out.store(t, s.load(63 - t));",
    ),
    "shared_race, read after write, same warp": (
        32,
        STAGE + "shuffle_xor(1.0f, 1); args.out.store(t, s.load(31 - t));",
        STAGE + "sync_warp(); args.out.store(t, s.load(31 - t));",
    ),
    "shared_race, write after read": (
        64,
        STAGE + "sync_block(); const float v = s.load(63 - t); s.store(t, v);",
        STAGE + "sync_block(); const float v = s.load(63 - t); sync_block(); s.store(t, v);",
    ),
    "shared_race, two writes": (
        32,
        "FLASHVL_SHARED(float, s, 32); s.store(t / 2, 1.0f);",
        "FLASHVL_SHARED(float, s, 32); s.store(t, 1.0f);",
    ),
    "shared_race, named barrier of the wrong warps": (
        96,
        STAGE.replace("64", "96") + "if (t < 64) { sync_named(1, 64); s.load(t + 32); }",
        STAGE.replace("64", "96") + "if (t < 64) { sync_named(1, 64); s.load(63 - t); }",
    ),
    "divergent_barrier, not all arrive": (
        64,
        "if (t < 40) sync_block();",
        "sync_block();",
    ),
    "divergent_barrier, two places": (
        64,
        "if (t < 32) {\n sync_block();\n } else {\n sync_block();\n }",
        "sync_block();",
    ),
    "divergent_barrier, two counts": (
        64,
        "sync_named(2, t < 32 ? 32 : 64);",
        "sync_named(2, 64);",
    ),
    "divergent_collective, lanes missing": (
        32,
        "if (t < 16) args.out.store(t, shuffle_xor(1.0f, 1));",
        "if (t < 16) args.out.store(t, shuffle_xor(1.0f, 1, 0xffffu));",
    ),
    "divergent_collective, absent source": (
        32,
        "if (t < 16) args.out.store(t, shuffle_xor(1.0f, 16, 0xffffu));",
        "if (t < 16) args.out.store(t, shuffle_xor(1.0f, 8, 0xffffu));",
    ),
    "missing_cp_async_wait": (
        32,
        COPY + "args.out.store(t, s.load(4 * t));",
        COPY + "cp_async_wait<0>(); args.out.store(t, s.load(4 * t));",
    ),
    "missing_cp_async_wait, one group too few": (
        32,
        COPY + "cp_async_commit(); cp_async_wait<2>(); args.out.store(t, s.load(4 * t));",
        COPY + "cp_async_commit(); cp_async_wait<1>(); args.out.store(t, s.load(4 * t));",
    ),
    "shared_race, cp.async without a barrier": (
        32,
        COPY + "cp_async_wait<0>(); args.out.store(t, s.load(4 * (31 - t)));",
        COPY + "cp_async_wait<0>(); sync_warp(); args.out.store(t, s.load(4 * (31 - t)));",
    ),
    "shared_race, cp.async into what is being read": (
        64,
        STAGE.replace("64", "256") + "sync_block(); s.load(t ^ 32);"
        "cp_async_small<4>(s + t, args.in + t); cp_async_commit(); cp_async_wait<0>();",
        STAGE.replace("64", "256") + "sync_block(); s.load(t ^ 32); sync_block();"
        "cp_async_small<4>(s + t, args.in + t); cp_async_commit(); cp_async_wait<0>();",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_repair_is_clean(name: str) -> None:
    kind = name.split(",")[0]
    threads, faulty, repaired = FAULTS[name]
    broken = mini(faulty, floats(128), torch.zeros(128), threads=threads)
    assert kind in kinds(broken), broken.findings
    whole = mini(repaired, floats(128), torch.zeros(128), threads=threads)
    assert not whole.findings, whole.findings


def test_a_finding_names_kernel_block_thread_line_and_remedy() -> None:
    result = mini("args.out.store(t, args.in.load(t + 100));", floats(128), torch.zeros(128))
    (finding,) = result.findings
    assert finding.count == 4
    assert "mini, block (0, 0, 0), thread (28, 0, 0): a load of 4 bytes" in finding.text
    assert "byte 512 of in, which has 512 bytes. Guard the index" in finding.text
    assert finding.where.endswith(".cpp:12")


@pytest.mark.parametrize("gap", [16, 64, 512])
def test_a_stray_access_is_told_from_the_nearer_edge(gap: int) -> None:
    """One tensor begins shortly after the other ends: past the end is not before the beginning."""
    memory = torch.zeros(256 + gap)
    given, out = memory[:128], memory[128 + gap :]
    (finding,) = mini("args.out.store(t, args.in.load(t + 97));", given, out).findings
    assert "byte 512 of in, which has 512 bytes" in finding.text
    (finding,) = mini("args.in.load(t); args.out.store(t - 1, 1.0f);", given, out).findings
    assert "byte -4 of out, which has 512 bytes" in finding.text


def test_shared_arrays_beyond_the_device_are_refused() -> None:
    result = mini("FLASHVL_SHARED(float, s, 60000); s.store(t, 1.0f);", floats(8), torch.zeros(8))
    assert kinds(result) == {"shared_out_of_bounds"}
    assert "the device has 232448" in result.findings[0].text


def test_atomics_do_not_race_with_each_other() -> None:
    body = """FLASHVL_SHARED(float, s, 1); if (t == 0) s.store(0, 0.0f);
      sync_block(); s.atomic_add(0, args.in.load(t)); sync_block();
      if (t == 0) args.out.store(0, s.load(0)); args.out.atomic_add(1, 1.0f);"""
    out = torch.zeros(2)
    result = mini(body, floats(64), out, threads=64)
    assert not result.findings
    assert out.tolist() == [float(floats(64).sum()), 64.0]


def test_arrive_hands_over_without_waiting() -> None:
    """A producer warp arrives, a consumer warp waits: ordered one way only."""
    body = """FLASHVL_SHARED(float, s, 32);
      if (t < 32) { s.store(t, args.in.load(t)); arrive_named(1, 64); }
      else { sync_named(1, 64); args.out.store(t - 32, s.load(63 - t)); }"""
    out = torch.zeros(32)
    assert not mini(body, floats(32), out, threads=64).findings
    assert torch.equal(out, floats(32).flip(0))
    back = body.replace("arrive_named(1, 64);", "arrive_named(1, 64); s.store(t, 0.0f);")
    assert "shared_race" in kinds(mini(back, floats(32), out, threads=64))
