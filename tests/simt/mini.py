"""Kernels of a few lines, to see what csrc/simt makes of them."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from flashvl_kernels import simt
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared

HEAD = """
#include "cuda/memory.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/sync.cuh"
namespace flashvl::cuda {
struct MiniArgs { Global<const IN> in; Global<OUT> out; int64_t n; };
__global__ void mini(MiniArgs args) {
  const int t = threadIdx.x;
  (void)t;
  BODY
}
}
"""


class MiniArgs(ctypes.Structure):
    _fields_ = (("input", ctypes.c_void_p), ("out", ctypes.c_void_p), ("n", ctypes.c_int64))


def mini(
    body: str,
    given: Tensor,
    out: Tensor,
    *,
    threads: int = 32,
    blocks: int = 1,
    shared_bytes: int = 0,
    types: tuple[str, str] = ("float", "float"),
) -> simt.Result:
    """Run `body` with `args.in`, `args.out`, `args.n` and t, the thread; `out` keeps its values."""
    reason = simt.unavailable()
    if reason:
        pytest.skip(reason)
    source = HEAD.replace("IN>", types[0] + ">").replace("OUT>", types[1] + ">")
    kernel = Instance("mini", "MiniArgs")
    module = simt.build(source.replace("BODY", body), [kernel], "a kernel of the test")
    arguments = MiniArgs(given.data_ptr(), out.data_ptr(), given.numel())
    launch = Launch(kernel, (blocks, 1, 1), (threads, 1, 1), arguments, shared_bytes)
    tensors = {"in": given, "out": out}
    return simt.run(Prepared((), (launch,), tensors, frozenset(("out",))), module)


def kinds(result: simt.Result) -> set[str]:
    return {finding.kind for finding in result.findings}


def floats(*shape: int) -> Tensor:
    return torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float32).reshape(shape) / 8
