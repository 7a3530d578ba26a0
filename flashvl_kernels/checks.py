"""Argument checks shared by the ops: they look at shapes, dtypes and devices only.

They run before every call and every trace, so they must work on fake tensors and cost next to
nothing. An error names the op, the argument, what it got, what it needs, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def fail(op: str, argument: str, got: str, needs: str, todo: str) -> NoReturn:
    """Raise the ValueError every op uses for a bad value."""
    raise ValueError(f"{op}: {argument} {got}; needs {needs}. {todo}")


def is_float(op: str, argument: str, tensor: Tensor) -> None:
    """`tensor` holds one of the compute dtypes."""
    if tensor.dtype not in COMPUTE_DTYPES:
        raise TypeError(
            f"{op}: {argument} has dtype {name(tensor.dtype)}; needs bfloat16, float16 or float32 "
            f"(float64 runs through the reference). Convert it with {argument}.to(torch.bfloat16)."
        )


def is_index(op: str, argument: str, tensor: Tensor) -> None:
    """`tensor` holds int64, the only index dtype the ops take."""
    if tensor.dtype != torch.int64:
        raise TypeError(
            f"{op}: {argument} has dtype {name(tensor.dtype)}; needs int64. "
            f"Convert it with {argument}.long()."
        )


def same_dtype(op: str, argument: str, tensor: Tensor, like: Tensor, like_name: str = "x") -> None:
    """`tensor` has the dtype and the device of `like`."""
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{op}: {argument} has dtype {name(tensor.dtype)} but {like_name} has "
            f"{name(like.dtype)}; needs one dtype for both. "
            f"Convert it with {argument}.to({like_name}.dtype)."
        )
    same_device(op, argument, tensor, like, like_name)


def same_device(op: str, argument: str, tensor: Tensor, like: Tensor, like_name: str = "x") -> None:
    """`tensor` lives on the device of `like`."""
    if tensor.is_cpu and like.is_cpu:  # a quarter of the time of comparing two torch.device
        return
    if tensor.device != like.device:
        fail(
            op,
            argument,
            f"is on {tensor.device} but {like_name} is on {like.device}",
            "one device for both",
            f"Move it with {argument}.to({like_name}.device).",
        )


def instance(op: str, argument: str, value: Any, kind: type[T]) -> T:
    """`value`, which is a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{op}: {argument} is a {type(value).__name__}; needs a {kind.__name__}. "
            f"See help(flashvl_kernels.{kind.__name__})."
        )
    return value


def rank(op: str, argument: str, tensor: Tensor, axes: str) -> None:
    """`tensor` has as many axes as `axes` names, e.g. "[N, K]"."""
    needed = axes.count(",") + 1
    if tensor.dim() != needed:
        fail(
            op,
            argument,
            f"has shape {list(tensor.shape)}",
            f"{needed} axes {axes}",
            "Reshape it first.",
        )


def shape(op: str, argument: str, tensor: Tensor, needed: Sequence[int], why: str) -> None:
    """`tensor` has exactly the shape `needed`; `why` says which argument fixes it."""
    if tensor.shape != tuple(needed):
        fail(
            op,
            argument,
            f"has shape {list(tensor.shape)}",
            f"{list(needed)}, given by {why}",
            f"Check that {argument} belongs to this call.",
        )


def at_least_1d(op: str, argument: str, tensor: Tensor) -> None:
    """`tensor` has a last axis to work along."""
    if tensor.dim() == 0:
        fail(op, argument, "is a scalar", "at least one axis", "Pass a tensor of shape [..., C].")


def positive(op: str, argument: str, value: float) -> None:
    """`value` is a finite number above zero."""
    if not 0 < value < float("inf"):
        fail(op, argument, f"is {value}", "a finite number above 0", "The models use 1e-5 or 1e-6.")


def name(dtype: torch.dtype) -> str:
    """The dtype as users write it, without the `torch.` in front."""
    return str(dtype).removeprefix("torch.")
