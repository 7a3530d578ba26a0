"""A launch as sentryward takes it: PTX whose parameters are scalars and pointers, and their values.

The kernels take one struct. Here each field of it becomes a parameter of its own, pointers declared
as such, and what is known of a launch is filled in: a field that is zero is a null pointer, a
comparison of another pointer with null is decided, and so is its remainder by 16 or 32; a float is
its value. The other instructions stay as nvcc wrote them.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.cuda import nvcc
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared
from flashvl_kernels.simt.build import CSRC

ARCHITECTURE = 80
"""Its PTX has every instruction the kernels use."""
TYPES: dict[Any, str] = {
    ctypes.c_void_p: "u64", ctypes.c_int64: "u64", ctypes.c_int: "u32", ctypes.c_float: "f32",
}  # fmt: skip
INTEGERS = {torch.int64: "u64", torch.int32: "u32"}
"""Unsigned, for sentryward takes no negative number: the bits of one are those of a large one."""


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
            and (values := _unsigned(tensor))
        ],
    }
    text = _split(ptx, entry, fields)
    for field in (f for f in fields if f.is_pointer):
        text = _aligned(_not_null(text, field), field)
    return Question(text, config, fields)


def _unsigned(tensor: Tensor) -> list[list[int]]:
    """The elements, each a shape of one axis; negative ones as the number with the same bits."""
    bits = 8 * tensor.element_size()
    return [[value % 2**bits] for value in tensor.flatten().tolist()]


def _fields(launched: ctypes.Structure, entry: str) -> Iterator[Field]:
    places = list(_places(launched, 0))
    for i, (offset, kind, value) in enumerate(places):
        yield Field(offset, kind, value, f"{entry}_param_{i}")


def _places(launched: ctypes.Structure, base: int) -> Iterator[tuple[int, Any, Any]]:
    for name, kind, *_ in launched._fields_:
        offset = base + getattr(type(launched), name).offset
        if issubclass(kind, ctypes.Structure):
            yield from _places(getattr(launched, name), offset)
        elif issubclass(kind, ctypes.Array):
            size = ctypes.sizeof(kind._type_)
            for i, value in enumerate(getattr(launched, name)):
                yield offset + i * size, kind._type_, value
        else:
            yield offset, kind, getattr(launched, name)


def _argument(field: Field) -> dict[str, Any]:
    if field.kind is ctypes.c_void_p:
        return {"parameter": field.name, "type": "pointer", "value": None}
    kind = TYPES[field.kind]
    value = field.value if kind == "f32" else field.value % 2 ** (8 * ctypes.sizeof(field.kind))
    return {"parameter": field.name, "type": kind, "value": value}


def _split(ptx: str, entry: str, fields: tuple[Field, ...]) -> str:
    """`ptx` with a parameter for each field; no load may reach into the next one."""
    parameter = f"{entry}_param_0"
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
            if kind == "f32":  # of whose value sentryward makes a symbol
                lines.append(f"mov.f32 \t{register}, 0f{struct.pack('>f', field.value).hex()};")
                continue
            lines.append(f"ld.param.{kind} \t{register}, [{field.name}];")
        return "\n\t".join(lines)

    head, brace, body = ptx.partition("\n{")
    body = _without_address(body, parameter)
    head, count = re.subn(
        rf"\t\.param \.align \d+ \.b8 {parameter}\[\d+\]", lambda _: declared, head
    )
    body, loads = re.subn(
        rf"ld\.param(?:\.v\d)?\.(\w+)\s+(\{{[^}}]*\}}|%\w+), \[{parameter}(?:\+(\d+))?\];",
        load,
        body,
    )
    if count != 1 or loads == 0:
        raise ValueError(f"{entry} does not take one struct")
    return head + brace + body


def _without_address(body: str, parameter: str) -> str:
    """`body` with the struct's name where a register with its address, or one in it, was."""
    places = {register: {0} for register in re.findall(rf"mov\.b64 \t(%\w+), {parameter};", body)}
    for register, base, offset in re.findall(r"add\.s64 \t(%\w+), (%\w+), (-?\d+);", body):
        if len(places.get(base, ())) == 1:
            places.setdefault(register, set()).update(at + int(offset) for at in places[base])
    choice = r"selp\.b64 \t(%\w+), (%\w+), (%\w+), (%p\d+);"
    for register, yes, no, predicate in re.findall(choice, body):
        if yes in places and no in places:
            (first,), (second,) = places[yes], places[no]
            places[register] = {first, second}
            chosen = rf"(selp\.b64 \t{register}), {yes}, {no}, {predicate};"
            body = re.sub(chosen, rf"\1, {first}, {second}, {predicate};", body)
    for register, at in places.items():
        if len(at) == 1:
            body = re.sub(
                rf"(ld\.param\S+\s+[^\[;]*\[){register}(?:\+(-?\d+))?\]",
                lambda m, at=at: f"{m[1]}{parameter}+{min(at) + int(m[2] or 0)}]",
                body,
            )
        else:
            body = _both_loaded(body, parameter, register, at)
    declared = "\t.reg .b64 \t%other;\n\t.reg .pred \t%first;\n"
    body = re.sub(r"(?=\t\.reg )", declared, body, count=1)
    return re.sub(rf"\tmov\.b64 \t%\w+, {parameter};\n", "", body)


def _both_loaded(body: str, parameter: str, register: str, places: set[int]) -> str:
    """`body` with `register`, which has one of two addresses in the struct, as its offset, and a
    choice of one of two loaded fields where a field was loaded from there."""
    first, second = sorted(places)
    added = rf"add\.s64 \t{register}, %\w+, (-?\d+);"
    if not {int(offset) for offset in re.findall(added, body)} <= places:
        raise ValueError(f"{register} is not told from the struct's own address")
    body = re.sub(added, rf"mov.b64 \t{register}, \1;", body)

    def load(found: re.Match[str]) -> str:
        value, offset = found[1], int(found[2] or 0)
        return (
            f"ld.param.u64 \t{value}, [{parameter}+{first + offset}];\n"
            f"\tld.param.u64 \t%other, [{parameter}+{second + offset}];\n"
            f"\tsetp.eq.s64 \t%first, {register}, {first};\n"
            f"\tselp.b64 \t{value}, {value}, %other, %first;"
        )

    return re.sub(rf"ld\.param\.u64 \t(%\w+), \[{register}(?:\+(\d+))?\];", load, body)


def _registers(ptx: str, field: Field) -> list[str]:
    return re.findall(rf"ld\.param\.u64 \t(%\w+), \[{field.name}\];", ptx)


def _not_null(ptx: str, field: Field) -> str:
    """`ptx` with the comparisons of a pointer with null decided."""
    for register in _registers(ptx, field):
        compare = rf"setp\.(eq|ne)\.\w+(\s+%p\d+), {register}, 0;"
        ptx = re.sub(compare, r"setp.\1.s64\2, 1, 0;", ptx)
    return ptx


def _aligned(ptx: str, field: Field) -> str:
    """`ptx` with a pointer's remainder by 16 or 32, which steers a kernel, as it is in the
    launch."""
    for register in _registers(ptx, field):
        for last in (15, 31):
            remainder = rf"and\.b64(\s+%\w+), {register}, {last};"
            ptx = re.sub(remainder, rf"mov.b64\1, {field.value & last};", ptx)
    return ptx


def of_floats(ptx: str) -> str:
    """`ptx` of a kernel of float, as sentryward can follow its values.

    It takes the type of a number from the access that moves it: bits that a copy moves as u32
    become floats. It has no votes: each becomes five exchanges between the lanes of the warp.
    """
    moves = r"((?:ld\.global\.nc\.L1::no_allocate|st\.global|ld\.shared\.v4)(?:\.v[24])?)\.u32"
    ptx = re.sub(moves, r"\1.f32", ptx)
    if "vote.sync.ballot" in ptx:
        ptx = re.sub(r"(?=\t\.reg )", "\t.reg .b32 \t%vote<3>;\n", ptx, count=1)
    return re.sub(r"vote\.sync\.ballot\.b32 \t(%\w+), (%p\d+), (%\w+);", _exchanged, ptx)


def _exchanged(vote: re.Match[str]) -> str:
    votes, mine, members = vote.groups()
    lines = [
        "mov.u32 \t%vote0, %tid.x;",
        "and.b32 \t%vote0, %vote0, 31;",
        f"selp.b32 \t%vote1, 1, 0, {mine};",
        "shl.b32 \t%vote1, %vote1, %vote0;",
    ]
    for by in (1, 2, 4, 8, 16):
        lines += [
            f"shfl.sync.bfly.b32 \t%vote2, %vote1, {by}, 31, {members};",
            "or.b32 \t%vote1, %vote1, %vote2;",
        ]
    return "\n\t".join([*lines, f"mov.b32 \t{votes}, %vote1;"])
