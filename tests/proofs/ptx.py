"""A launch as sentryward takes it: PTX whose parameters are scalars and pointers, and their values.

The kernels take one struct. Here each field of it becomes a parameter of its own, pointers declared
as such, and what is known of a launch is filled in: a field that is zero is a null pointer, and a
comparison of another pointer with null is decided. The instructions stay as nvcc wrote them.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashvl_kernels.cuda import nvcc
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared
from flashvl_kernels.simt.build import CSRC

TYPES: dict[Any, str] = {
    ctypes.c_void_p: "u64", ctypes.c_int64: "u64", ctypes.c_int: "u32", ctypes.c_float: "f32",
}  # fmt: skip
INTEGERS = {torch.int64: "s64", torch.int32: "s32"}


@dataclass(frozen=True)
class Field:
    """A field of a kernel's struct: its place in bytes, its ctypes type and value, and the name of
    the parameter it becomes."""

    offset: int
    kind: Any
    value: Any
    name: str

    @property
    def is_pointer(self) -> bool:
        """Whether it is an address that is not null."""
        return self.kind is ctypes.c_void_p and bool(self.value)


@dataclass(frozen=True)
class Question:
    """What sentryward is asked: the PTX, the launch's configuration, and its fields in order."""

    ptx: str
    config: dict[str, Any]
    fields: tuple[Field, ...]


def compiled(
    op: str, kernel: Instance, architecture: int, folder: Path, *flags: str, csrc: Path = CSRC
) -> str:
    """nvcc's PTX of one kernel. csrc: of a test's altered copy of the sources."""
    unit, ptx = folder / "kernel.cu", folder / "kernel.ptx"
    unit.write_text(
        f'#include "{op}.cuh"\nnamespace flashvl::cuda {{\n'
        f"template __global__ void {kernel.expression}({kernel.arguments});\n}}\n"
    )
    common = ["-std=c++17", f"-arch=sm_{architecture}", "-ptx", "-I", str(csrc / "cuda")]
    subprocess.run([nvcc.path(), *common, *flags, str(unit), "-o", str(ptx)], check=True)
    return ptx.read_text()


def question(ptx: str, launch: Launch, prepared: Prepared) -> Question:
    """The proof obligation of one launch, of the call `prepared`, of the kernel in `ptx`.

    Whole numbers that it reads from memory (lengths, places) have their values; all else there may
    be anything.
    """
    (entry,) = re.findall(r"\.entry (\w+)", ptx)
    fields = tuple(_fields(launch.arguments, entry))
    config = {
        "schema": "spverify.kernel-input/v1",
        "entry": entry,
        "launch": {
            "grid_dim": launch.grid,
            "block_dim": launch.block,
            "cluster_dim": [1, 1, 1],
            "dynamic_shared_bytes": launch.shared_bytes,
        },
        "arguments": [_argument(field) for field in fields if not field.is_pointer],
        "shape_arrays": [
            {"parameter": field.name, "element_type": INTEGERS[tensor.dtype], "shapes": values}
            for name, tensor in prepared.tensors.items()
            for field in fields
            if name not in prepared.written
            and tensor.dtype in INTEGERS
            and field.is_pointer
            and field.value == tensor.data_ptr()
            and (values := [[value] for value in tensor.flatten().tolist()])
        ],
    }
    return Question(_pointers_are_not_null(_split(ptx, entry, fields), fields), config, fields)


def _fields(struct: ctypes.Structure, entry: str) -> Iterator[Field]:
    places = list(_places(struct, 0))
    for i, (offset, kind, value) in enumerate(places):
        yield Field(offset, kind, value, f"{entry}_param_{i}")


def _places(struct: ctypes.Structure, base: int) -> Iterator[tuple[int, Any, Any]]:
    for name, kind, *_ in struct._fields_:
        offset = base + getattr(type(struct), name).offset
        if issubclass(kind, ctypes.Structure):
            yield from _places(getattr(struct, name), offset)
        elif issubclass(kind, ctypes.Array):
            size = ctypes.sizeof(kind._type_)
            for i, value in enumerate(getattr(struct, name)):
                yield offset + i * size, kind._type_, value
        else:
            yield offset, kind, getattr(struct, name)


def _argument(field: Field) -> dict[str, Any]:
    if field.kind is ctypes.c_void_p:
        return {"parameter": field.name, "type": "pointer", "value": None}
    kind = TYPES[field.kind]
    value = field.value if kind == "f32" else field.value % 2 ** (8 * ctypes.sizeof(field.kind))
    return {"parameter": field.name, "type": kind, "value": value}


def _split(ptx: str, entry: str, fields: tuple[Field, ...]) -> str:
    """`ptx` with a parameter for each field; no load may reach into the next one."""
    struct = f"{entry}_param_0"
    names = {field.offset: field for field in fields}
    declared = ",\n".join(
        f"\t.param .{TYPES[f.kind]}{' .ptr .global .align 1' if f.is_pointer else ''} {f.name}"
        for f in fields
    )

    def load(found: re.Match[str]) -> str:
        kind, registers = found[1], re.findall(r"%\w+", found[2])
        size = int(re.sub(r"\D", "", kind)) // 8
        first = int(found[3] or 0)
        lines = []
        for i, register in enumerate(registers):
            field = names[first + i * size]
            if ctypes.sizeof(field.kind) < size:
                raise ValueError(f"{found[0]} reads past a field")
            lines.append(f"ld.param.{kind} \t{register}, [{field.name}];")
        return "\n\t".join(lines)

    head, brace, body = ptx.partition("\n{")
    body = _without_address(body, struct)
    head, count = re.subn(rf"\t\.param \.align \d+ \.b8 {struct}\[\d+\]", lambda _: declared, head)
    body, loads = re.subn(
        rf"ld\.param(?:\.v\d)?\.(\w+)\s+(\{{[^}}]*\}}|%\w+), \[{struct}(?:\+(\d+))?\];", load, body
    )
    if count != 1 or loads == 0:
        raise ValueError(f"{entry} does not take one struct")
    return head + brace + body


def _without_address(body: str, struct: str) -> str:
    """`body` with the struct's name where a register with its address, or one in it, was."""
    places = {register: 0 for register in re.findall(rf"mov\.b64 \t(%\w+), {struct};", body)}
    for register, base, offset in re.findall(r"add\.s64 \t(%\w+), (%\w+), (-?\d+);", body):
        if base in places:
            places[register] = places[base] + int(offset)
    for register, place in places.items():
        body = re.sub(
            rf"(ld\.param\S+\s+[^\[;]*\[){register}(?:\+(-?\d+))?\]",
            lambda m, place=place: f"{m[1]}{struct}+{place + int(m[2] or 0)}]",
            body,
        )
    return re.sub(rf"\tmov\.b64 \t%\w+, {struct};\n", "", body)


def _pointers_are_not_null(ptx: str, fields: tuple[Field, ...]) -> str:
    for field in (f for f in fields if f.is_pointer):
        for register in re.findall(rf"ld\.param\.u64 \t(%\w+), \[{field.name}\];", ptx):
            compare = rf"setp\.(eq|ne)\.\w+(\s+%p\d+), {register}, 0;"
            ptx = re.sub(compare, r"setp.\1.s64\2, 1, 0;", ptx)
    return ptx
