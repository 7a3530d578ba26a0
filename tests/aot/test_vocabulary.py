"""The vocabulary of csrc/cuda under nvcc: every wrapper becomes the instruction it names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from flashvl_kernels.cuda import nvcc, sources

SOURCE = """
#include "memory.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/exp2.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "ptx/sync.cuh"
namespace flashvl::cuda {
struct Args { Global<const BF16> in; Global<float> out; Global<int32_t> count; };
__global__ void every_wrapper(Args args) {
  const int t = threadIdx.x;
  const Shared<BF16> tile = dynamic_shared<BF16>(128);
  FLASHVL_SHARED(float, sums, 32);
  cp_async_16(tile + 8 * t, args.in + 8 * t, t < 20);
  cp_async_small<8>(tile + 512 + 4 * t, args.in + 4 * t);
  cp_async_commit();
  cp_async_wait<0>();
  sync_block();
  uint32_t a[4], b[2], c[1];
  ldmatrix(a, tile + 8 * t);
  ldmatrix_transposed(b, tile + 8 * t);
  ldmatrix(c, tile + 8 * t);
  float d[4] = {};
  int32_t e[4] = {};
  mma_m16n8k16<BF16>(d, a, b);
  mma_m16n8k16<F16>(d, a, b);
  mma_m16n8k32_s8(e, a, b);
  const Vec<BF16, 8> v = args.in.load_once<8>(8 * t);
  sums.store(t, d[0] + e[0] + to_float(v[3]) + c[0]);
  sync_warp();
  arrive_named(1, 64);
  sync_named(2, 32);
  sums.atomic_add(0, shuffle_xor(sums.load(t), 1) + shuffle_down(d[1], 2) + shuffle_idx(d[2], 3));
  args.count.atomic_add(0, ballot(d[3] > 0) + any(t == 1) + all(t < 9));
  fence_device();
  Vec<float, 4> out = {d[0], d[1], d[2], d[3]};
  args.out.store(4 * t, out);
  args.out.store(t, to_float(from_float<F16>(sums.load(t))) + bf16_pair(d[0], d[1]) +
                        f16_pair(d[2], d[3]) + exp2_approximate(d[1]));
}
}  // namespace flashvl::cuda
"""

INSTRUCTIONS = (
    "ex2.approx.ftz.f32", "cp.async.cg.shared.global", "cp.async.ca.shared.global",
    "cp.async.commit_group", "cp.async.wait_group",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", "ldmatrix.sync.aligned.m8n8.x1.shared.b16",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "ld.global.nc.L1::no_allocate.v4.u32",
    "st.global.v4", "bar.arrive", "bar.sync", "bar.warp.sync", "shfl.sync.bfly",
    "shfl.sync.down", "shfl.sync.idx", "vote.sync.ballot", "atom.shared.add.f32",
    "cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32", "membar.gl",
)  # fmt: skip


@pytest.mark.parametrize("architecture", [80, 120])
def test_every_wrapper_is_its_instruction(architecture: int, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH; install the CUDA toolkit to compile the kernels")
    source, ptx = tmp_path / "every.cu", tmp_path / "every.ptx"
    source.write_text(SOURCE)
    common = [nvcc.path(), "-std=c++17", f"-arch=sm_{architecture}"]
    folders = ["-I", str(sources.folder())]
    subprocess.run([*common, *folders, "-ptx", str(source), "-o", str(ptx)], check=True)
    text = ptx.read_text()
    missing = [name for name in INSTRUCTIONS if name not in text]
    if "atom.shared.add.f32" in missing and "red.shared.add.f32" in text:
        missing.remove("atom.shared.add.f32")  # nobody reads the old value
    if "membar.gl" in missing and "fence" in text:
        missing.remove("membar.gl")
    assert not missing
    assembled = [*common, "-cubin", str(ptx), "-o", str(tmp_path / "every.cubin")]
    subprocess.run(assembled, check=True)
