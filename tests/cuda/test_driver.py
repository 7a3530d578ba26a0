"""What reaches the CUDA driver: a stand-in records the calls, and no GPU is needed."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest
import torch

import flashvl_kernels as fvk
from flashvl_kernels.backends import explain
from flashvl_kernels.cuda import driver, plan_module
from flashvl_kernels.cuda.device import H100
from flashvl_kernels.cuda.launch import Instance, Launch, Rows


class Recorder:
    """Answers like cuda.bindings.driver. status: of the next call. Every kernel has STATIC bytes of
    shared memory of its own."""

    STATIC = 16

    class CUfunction_attribute:
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = "dynamic shared"

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.arguments = b""
        self.status = 0
        self.allowed: dict[Any, int] = {}

    def cuFuncSetAttribute(self, *args: Any) -> tuple[int]:
        self.calls.append(("attribute", args))
        self.allowed[args[0]] = args[2]
        return (self.status,)

    def cuLaunchKernel(self, *args: Any) -> tuple[int]:
        self.calls.append(("launch", args[:-2]))
        first = ctypes.c_void_p.from_address(args[-2]).value
        assert first is not None
        self.arguments = ctypes.string_at(first, ctypes.sizeof(Rows))
        most = max(48 * 1024 - self.STATIC, self.allowed.get(args[0], 0))
        return (self.status if args[7] <= most else 1,)

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, f"error {status}".encode()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(driver, "_ALLOWED", {})
    monkeypatch.setattr(driver, "_driver", lambda: found)
    return found


def launch(shared_bytes: int) -> Launch:
    kernel = Instance("kernel<8>", "Rows")
    return Launch(kernel, (3, 2, 1), (32, 4, 1), Rows(5, 6, 7), shared_bytes)


def test_a_launch_passes_its_sizes_and_its_struct(recorder: Recorder) -> None:
    driver.start("f", launch(0), 77)
    assert recorder.calls == [("launch", ("f", 3, 2, 1, 32, 4, 1, 0, 77))]
    assert recorder.arguments == bytes(Rows(5, 6, 7))


def test_much_shared_memory_is_asked_for_first(recorder: Recorder) -> None:
    driver.start("f", launch(100_000), 0)
    assert [name for name, _ in recorder.calls] == ["attribute", "launch"]
    assert recorder.calls[0][1] == ("f", "dynamic shared", 100_000)


def test_the_default_of_48_kib_includes_what_the_kernel_declares(recorder: Recorder) -> None:
    """An H100 refused 48 KiB of dynamic memory beside a static word: "invalid argument"."""
    for _ in range(2):
        driver.start("f", launch(48 * 1024), 0)
    assert [name for name, _ in recorder.calls] == ["attribute", "launch", "launch"]


def test_a_refusal_names_the_call(recorder: Recorder) -> None:
    recorder.status = 701
    with pytest.raises(driver.DriverError, match="cuLaunchKernel: error 701"):
        driver.start("f", launch(0), 0)


def test_every_claim_has_its_plan_and_every_plan_its_claim() -> None:
    for name, spec in fvk.spec.REGISTRY.items():
        assert ("cuda" in spec.kernels) == (plan_module(name) is not None), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_explain_says_why_cuda_is_not_taken() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(4, 64, dtype=torch.bfloat16, device="cuda")
        told = explain("rms_norm", x, torch.empty(64, dtype=torch.bfloat16, device="cuda"), 1e-6)
    assert told.backend == "torch"
    assert re.search("built without CUDA|no CUDA device", told.rejected["cuda"])


def test_old_gpus_are_refused_with_a_reason() -> None:
    pytest.importorskip("cuda.bindings")
    assert "need sm_80" in str(driver.why_not_on(75))
    assert driver.why_not_on(H100.capability) is None
