"""Proofs that a kernel computes what its op's reference does, in real numbers: the questions.

    nice python -m tests.proofs.equal           # asks about every case and writes equal.json
    python -m tests.proofs.equal --table        # the table of docs/cuda.md

Of each op the instance of float, whose values PTX names as such, on a small call. The reference is
the op's own (`traced.py` writes it in the operators that sentryward knows). Both are functions of
the tensors' contents, so a proof holds for all of them, but for integers that steer a kernel, such
as ids, which have the call's values. Each case has an index fault that its proof must not survive.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flashvl_kernels as fk
from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda import plan_module
from flashvl_kernels.cuda.launch import Prepared
from flashvl_kernels.simt.build import CSRC
from flashvl_kernels.spec import Call, Maker, capture
from flashvl_kernels.spec import call as arguments
from flashvl_kernels.tiles import TileGrid
from tests.proofs import launches, ptx, sentry, traced
from tests.proofs.ptx import Question

ANSWERS = Path(__file__).with_name("equal.json")
PROVEN = "verified"


@dataclass(frozen=True)
class Patch:
    """`old` becomes `new` in csrc/cuda/`file`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Case:
    """A call of `function`, and the faults its proof must not survive.

    given: changes of the sources for the proof, which put integers of the call in place of loads,
    and floats in place of an image's bytes.
    """

    function: Callable[..., Any]
    make: Callable[[Maker], Call]
    faults: dict[str, Patch]
    given: tuple[Patch, ...] = ()


def answers() -> dict[str, str]:
    """The recorded answers, by case."""
    found: dict[str, str] = json.loads(ANSWERS.read_text())
    return found


def answer(case: Case, folder: Path, fault: str | None = None) -> str:
    """What sentryward says of a case, or of its kernel with one of its faults."""
    made = case.make(Maker(torch.float32))
    spec, flat = capture(case.function, *made.args, **made.kwargs)
    plan = plan_module(spec.name)
    assert plan is not None
    prepared = plan.prepare(flat, launches.SMALL)
    (launch,) = prepared.launches
    csrc = patched((*case.given, *([] if fault is None else [case.faults[fault]])), folder)
    text = ptx.compiled(spec.name, launch.kernel, ptx.ARCHITECTURE, folder, csrc=csrc)
    asked = ptx.question(ptx.of_floats(text), launch, prepared)
    if case.given:
        asked.config["shape_arrays"] = []
    reference, places = traced.source(spec.reference, flat)
    found = sentry.equal(asked, reference, binding(asked, prepared, flat, places), folder)
    return found.result if found.result == PROVEN else f"{found.result}: {found.reason}"


def binding(
    asked: Question, prepared: Prepared, flat: tuple[Any, ...], places: list[int]
) -> dict[str, Any]:
    """Which pointer of the kernel is which argument, or result, of the reference."""
    given = {f"a{i}": flat[i] for i in places}
    layouts = {_allocation(asked, tensor): _layout(tensor) for tensor in given.values()}
    return {
        "reference": {
            "arguments": [
                {
                    "name": name,
                    "allocation": _allocation(asked, tensor),
                    "shape": list(tensor.shape),
                    "dtype": str(_read_as(tensor)).removeprefix("torch."),
                }
                for name, tensor in given.items()
            ]
        },
        "left_inputs": {"layouts": layouts},
        "right_inputs": {"layouts": layouts},
        "outputs": _outputs([_output(asked, each) for each in prepared.outputs if each.numel()]),
    }


def _outputs(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    if len(tensors) == 1:
        return {"kind": "dense_tensor", **tensors[0]}
    return {"kind": "dense_tensors", "tensors": tensors}


def _allocation(asked: Question, tensor: Tensor) -> str:
    """sentryward's name, two netstrings, of the memory behind the kernel's pointer to `tensor`."""
    (place,) = (
        i for i, f in enumerate(asked.fields) if f.is_pointer and f.value == tensor.data_ptr()
    )
    name = f"input.arg{place}.0"
    return f"6:global{len(name)}:{name}"


def _read_as(tensor: Tensor) -> torch.dtype:
    """A proof is in real numbers: it takes images as floats."""
    return torch.float32 if tensor.dtype == torch.uint8 else tensor.dtype


def _bytes(strides: tuple[int, ...], tensor: Tensor) -> list[int]:
    return [stride * _read_as(tensor).itemsize for stride in strides]


def _layout(tensor: Tensor) -> dict[str, Any]:
    assert tensor.is_contiguous()
    strides = _bytes(tensor.stride(), tensor)
    return {
        "shape": list(tensor.shape),
        "source_offset": 0,
        "target_offset": 0,
        "source_strides_bytes": strides,
        "target_strides_bytes": strides,
        "element_bytes": _read_as(tensor).itemsize,
    }


def _output(asked: Question, tensor: Tensor) -> dict[str, Any]:
    allocation, strides = _allocation(asked, tensor), _bytes(tensor.stride(), tensor)
    return {
        "left_allocation": allocation,
        "right_allocation": allocation,
        "shape": list(tensor.shape),
        "left_offset": 0,
        "right_offset": 0,
        "element_bytes": tensor.element_size(),
        "left_strides_bytes": strides,
        "right_strides_bytes": strides,
    }


def patched(patches: Sequence[Patch], folder: Path) -> Path:
    """A copy of csrc in `folder` with the patches applied; csrc itself where there are none."""
    if not patches:
        return CSRC
    shutil.copytree(CSRC / "cuda", folder / "csrc" / "cuda")
    for patch in patches:
        path = folder / "csrc" / "cuda" / patch.file
        text = path.read_text()
        assert text.count(patch.old) == 1, f"the patch no longer applies to csrc/cuda/{patch.file}"
        path.write_text(text.replace(patch.old, patch.new))
    return folder / "csrc"


def _chosen(place: str, values: Sequence[int]) -> str:
    """C++ that has values[place]."""
    *most, last = enumerate(values)
    choices = "".join(f"({place}) == {i} ? int64_t{{{value}}} : " for i, value in most)
    return f"({choices}int64_t{{{last[1]}}})"


IMAGE_OF_FLOATS = (
    Patch(
        "image_to_patches.cuh",
        """  const float about = grey * (1.0f / 255.0f);
  return fmaf(fmaf(-255.0f, about, grey), 1.0f / 255.0f, about);""",
        "  return grey / 255.0f;",
    ),
    Patch("image_to_patches.cuh", "T value(int grey, int", "T value(float grey, int"),
    Patch(
        "image_to_patches.cuh",
        "[this](int x, int y, const Sums<3>& sums) {\n      const int at = place(y, x);",
        "[this](int x, int y, const float (&greys)[3]) {\n      const int at = place(y, x);",
    ),
    Patch("image_to_patches.cuh", "value(sums.grey(c), c)", "value(greys[c], c)"),
    Patch(
        "image_to_patches.cuh",
        """    const Taps taps =
        stage_taps(args.filter, dynamic_shared<int32_t>(args.taps_offset), some.begin, some.end);
    sync_block();
#pragma unroll 1
    for (int line = lines.begin; line < lines.end; line += args.stage.lines) {
      filter_part(args.source, taps, args.stage, down, some, lines.part(line, args.stage.lines),
                  block.along(), block.down());""",
        """#pragma unroll 1
    for (int line = lines.begin; line < lines.end; line += args.stage.lines) {
      const Span part = lines.part(line, args.stage.lines);
      const Span xs = down ? part : some, ys = down ? some : part;
      for (int i = threadIdx.x; i < xs.count() * ys.count(); i += blockDim.x) {
        const int y = ys.begin + i / xs.count(), x = xs.begin + i % xs.count();
        const auto* pixel = reinterpret_cast<const float*>(args.source.bytes.address) +
                            y * args.source.row_stride + x * args.source.pixel_stride;
        block.along()(x, y, {pixel[0], pixel[1], pixel[2]});
      }""",
    ),
)
"""What follows the resize, of an image of floats: a block's pixels straight from memory to where
its patches have them, with the division that over_255 is equal to (a test has all greys)."""
SHARES = {"the tiles' shares swapped": Patch("tiling.cuh", "way == 0 ?", "way == 1 ?")}
SWAPPED = {
    "rows and columns of a block swapped": Patch(
        "compress_taps.cuh",
        "const int row = at.row * args.factor + part / args.factor;",
        "const int row = at.row * args.factor + part % args.factor;",
    )
}
PATCH_SWAPPED = {
    "rows and columns of a patch swapped": Patch(
        "image_to_patches.cuh",
        "(in_y - row * to_.patch) * to_.patch +\n           in_x - token * to_.patch",
        "(in_x - token * to_.patch) * to_.patch +\n           in_y - row * to_.patch",
    )
}
IDS = 7, -200, -201, 5, -201, 9
POSITIONS = 3, 1
HALF = ((0.5, 0.5, 0.5), (0.5, 0.25, 0.125))

CASES = {
    "merge_image_tokens, an image of three tokens": Case(
        fk.merge_image_tokens,
        lambda m: arguments(m.normal(6, 8), torch.tensor(IDS), m.normal(3, 8)),
        {
            "image rows in the opposite order": Patch(
                "merge_image_tokens.cuh",
                "rank < args.image_rows ? rank : -1",
                "rank < args.image_rows ? args.image_rows - 1 - rank : -1",
            )
        },
        (
            Patch(
                "merge_image_tokens.cuh",
                "ids.load((i + u * threads) * stride)", _chosen("i + u * threads", IDS),
            ),
            Patch(
                "merge_image_tokens.cuh",
                "args.ids.load(row * args.ids_stride)", _chosen("row", IDS),
            ),
        ),
    ),
    "stitch_tiles, crop": Case(
        fk.stitch_tiles,
        lambda m: arguments(m.normal(4, 16, 8), TileGrid(2, 2, 4, 2)),
        {
            "the cut one patch too late": Patch(
                "tiling.cuh", "local < (axis.overlap + 1) / 2", "local <= (axis.overlap + 1) / 2"
            )
        },
    ),
    "stitch_tiles, mean": Case(
        fk.stitch_tiles,
        lambda m: arguments(m.normal(2, 16, 8), TileGrid(1, 2, 4, 2, "mean")),
        {
            "the right tile one patch off": Patch(
                "token_canvas.cuh",
                "return tile_stride - tiling.across.step()",
                "return tile_stride - (tiling.across.step() - 1)",
            )
        },
    ),
    "stitch_tiles, linear": Case(
        fk.stitch_tiles,
        lambda m: arguments(m.normal(4, 16, 8), TileGrid(2, 2, 4, 2, "linear")),
        SHARES,
    ),
    "rope_qkv": Case(
        fk.rope_qkv,
        lambda m: arguments(m.normal(2, 32), m.normal(2, 4), m.normal(2, 4), None, 2, 1),
        {
            "values of the opposite row": Patch(
                "rope_qkv.cuh", "token * to.token", "(args.rows - 1 - token) * to.token"
            ),
            "cos of the first row for all": Patch(
                "rope_qkv.cuh", "const int64_t from = position * table.row;",
                "const int64_t from = 0 * position * table.row;",
            ),
        },
    ),
    "rope_qkv, positions": Case(
        fk.rope_qkv,
        lambda m: arguments(
            m.normal(2, 32), m.normal(5, 4), m.normal(5, 4), torch.tensor(POSITIONS), 2, 1
        ),
        {
            "the position after": Patch(
                "rope_qkv.cuh", "const int64_t from = position * table.row;",
                "const int64_t from = (position + 1) * table.row;",
            ),
        },
        (
            Patch(
                "rope_qkv.cuh",
                "args.positions.load(row * args.positions_stride)", _chosen("row", POSITIONS),
            ),
        ),
    ),
    "compress_tokens, shuffle": Case(
        fk.compress_tokens,
        lambda m: arguments(m.normal(1, 16, 8), Compression()),
        SWAPPED,
    ),
    "compress_tokens, shuffle, Unfold order": Case(
        fk.compress_tokens,
        lambda m: arguments(m.normal(1, 16, 16), Compression(order="channel_row_col")),
        {
            "words traded with the wrong lane": Patch(
                "compress_tokens.cuh", "if (from == other) y", "if (from == self) y"
            )
        },
    ),
    "compress_tokens, shuffle, padded": Case(
        fk.compress_tokens,
        lambda m: arguments(m.normal(1, 6, 8), Compression(pad=True), size=(2, 3)),
        SWAPPED,
    ),
    "compress_tokens, shuffle of a stitched canvas": Case(
        fk.compress_tokens,
        lambda m: arguments(
            m.normal(2, 16, 8), Compression(), None, TileGrid(1, 2, 4, 2, "mean")
        ),
        SWAPPED,
    ),
    "compress_tokens, average": Case(
        fk.compress_tokens,
        lambda m: arguments(m.normal(1, 16, 8), Compression("average")),
        {
            "a column too far": Patch(
                "compress_taps.cuh",
                "min(across.first + from + k,", "min(across.first + from + k + 1,",
            )
        },
    ),
    "compress_tokens, adaptive": Case(
        fk.compress_tokens,
        lambda m: arguments(m.normal(1, 25, 8), Compression("adaptive", out=(2, 2))),
        {
            "bins that end one too early": Patch(
                "compress_taps.cuh", "ceil_div(wide + size, out)", "(wide + size) / out"
            )
        },
    ),
    "swiglu": Case(
        fk.swiglu,
        lambda m: arguments(m.normal(2, 32)),
        {
            "values taken four too early": Patch(
                "swiglu.cuh", "gates + args.half", "gates + (args.half - 4)"
            ),
            "the halves swapped": Patch(
                "swiglu.cuh", "gated(gate[v][i], up[v][i])", "gated(up[v][i], gate[v][i])"
            ),
        },
    ),
    "image_to_patches, after the resize, tiles that overlap": Case(
        fk.image_to_patches,
        lambda m: arguments(m.image(4, 6), TileGrid(1, 2, 2, 1), *HALF, 2, torch.float32),
        PATCH_SWAPPED,
        IMAGE_OF_FLOATS,
    ),
    "rms_norm, a residual": Case(
        fk.rms_norm,
        lambda m: arguments(m.normal(2, 32), m.normal(32), 1e-6, m.normal(2, 32)),
        {
            "the residual of the row before": Patch(
                "norm_row.cuh", "args.residual_rows.offset(row) : 0;\n    each",
                "args.residual_rows.offset(row ^ 1) : 0;\n    each",
            )
        },
    ),
    "layer_norm": Case(
        fk.layer_norm,
        lambda m: arguments(m.normal(2, 32), m.normal(32), m.normal(32), 1e-6),
        {},
    ),
    "compress_tokens, shuffle and RMSNorm": Case(
        fk.compress_tokens,
        lambda m: arguments(m.normal(1, 4, 16), Compression(), fk.Norm(m.normal(64))),
        SWAPPED,
    ),
}  # fmt: skip


def table() -> str:
    """The answers in Markdown, as docs/cuda.md has them."""
    lines = ["| call | answer |", "|---|---|"]
    lines += [f"| {name} | {words} |" for name, words in answers().items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Ask about all cases and write the answers."""
    if "--table" in sys.argv:
        print(table(), end="")
        return 0
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = answer(case, Path(folder))
        print(f"{found[name]}  {name}", flush=True)
    ANSWERS.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
