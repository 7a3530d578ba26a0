"""A launch takes the kernel that Triton would take, and asks Triton only once for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashvl_kernels import triton as backend

if reason := backend.missing():
    pytest.skip(reason, allow_module_level=True)

import triton
from triton.runtime import driver

from flashvl_kernels.triton import dispatch


class Kernel:
    """A kernel of two run-time parameters whose compiler counts."""

    arg_names = ("x", "n", "BLOCK")

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **constants: Any) -> Any:
            self.asked.append((grid, *args, constants))
            return SimpleNamespace(
                run=lambda *given: self.launched.append(given), function=5, packed_metadata=()
            )

        return launch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setattr(dispatch, "DIRECT", True)
    monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_stream=lambda _: 7))
    dispatch.forget()
    yield Kernel()
    dispatch.forget()


def bf16(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bfloat16)


def test_an_equal_launch_goes_straight_to_the_compiled_kernel(kernel: Kernel) -> None:
    dispatch.queue(kernel, (3,), bf16(8), 8, BLOCK=16, num_warps=4)
    other = bf16(8)
    dispatch.queue(kernel, (4, 2), other, 8, BLOCK=16, num_warps=4)
    assert len(kernel.asked) == 1
    assert kernel.launched == [(4, 2, 1, 7, 5, (), None, None, None, other, 8, 16)]


@pytest.mark.parametrize(
    ("x", "n", "options"),
    [
        pytest.param(bf16(8), 1, {}, id="another integer"),
        pytest.param(bf16(8).float(), 8, {}, id="another dtype"),
        pytest.param(bf16(9)[1:], 8, {}, id="another alignment"),
        pytest.param(bf16(8), 8.0, {}, id="a float for an integer"),
        pytest.param(bf16(8), True, {}, id="a truth value for an integer"),
        pytest.param(bf16(8), 8, {"BLOCK": 32}, id="another constant"),
        pytest.param(bf16(8), 8, {"num_warps": 8}, id="other warps"),
    ],
)
def test_what_specialises_a_kernel_is_asked_for_again(
    kernel: Kernel, x: torch.Tensor, n: Any, options: dict[str, int]
) -> None:
    dispatch.queue(kernel, (3,), bf16(8), 8, BLOCK=16, num_warps=4)
    dispatch.queue(kernel, (3,), x, n, **{"BLOCK": 16, "num_warps": 4} | options)
    assert len(kernel.asked) == 2 and not kernel.launched


def test_floats_share_a_kernel_whatever_their_value(kernel: Kernel) -> None:
    for value in (1.0, 0.5, 2.0):
        dispatch.queue(kernel, (3,), bf16(8), value, BLOCK=16)
    assert len(kernel.asked) == 1
    assert [launch[-2] for launch in kernel.launched] == [0.5, 2.0]


def test_another_kernel_is_another_key(kernel: Kernel) -> None:
    dispatch.queue(kernel, (3,), bf16(8), 8, BLOCK=16)
    second = Kernel()
    dispatch.queue(second, (3,), bf16(8), 8, BLOCK=16)
    assert len(second.asked) == 1


def test_a_profiler_sees_every_launch(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.queue(kernel, (3,), bf16(8), 8, BLOCK=16)
    monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [print])
    dispatch.queue(kernel, (3,), bf16(8), 8, BLOCK=16)
    assert len(kernel.asked) == 2 and not kernel.launched


def test_another_version_of_triton_launches_by_itself(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of Triton's is used but the launch itself; what it compiled is known all the same,
    so that the tuner drops what spills."""
    monkeypatch.setattr(dispatch, "DIRECT", False)
    monkeypatch.delattr(triton, "knobs")
    monkeypatch.setattr(driver, "_active", None)
    x = bf16(8)
    for _ in range(2):
        dispatch.queue(kernel, (3,), x, 8, BLOCK=16, num_warps=4)
    assert kernel.asked == [((3,), x, 8, {"BLOCK": 16, "num_warps": 4})] * 2
    assert not kernel.launched and not dispatch._COMPILED
    assert [compiled.function for compiled in dispatch.compiled()] == [5, 5]
    dispatch.forget()
    assert not dispatch.compiled()


def test_keys_do_not_grow_without_end(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MOST", 3)
    for length in range(10, 20):
        dispatch.queue(kernel, (3,), bf16(8), length, BLOCK=16)
    assert len(dispatch._COMPILED) <= 3


def test_triton_specialises_by_nothing_that_the_key_lacks() -> None:
    """Values of equal keys have equal specialisations in Triton itself; the neighbours differ."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import BaseBackend

    def special(arg: Any) -> Any:
        return native_specialize_impl(BaseBackend, arg, False, True, True)

    assert special(0.25) == special(1.0)
    base = torch.zeros(64, dtype=torch.uint8)
    by_alignment = {at: special(base[at:]) for at in range(16)}
    assert by_alignment[0] == special(base[16:]) != by_alignment[1] == special(base[17:])
