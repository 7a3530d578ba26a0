"""The tests see faults: each one planted into a kernel's source is reported or judged wrong.

tests/triton/faults/<op>.py lists those of an op.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from planted import Planted
from semantics import Fault, executed, rounds_otherwise, wrong
from test_kernels_from_ir import SMALL, flat_call

from flashvl_kernels import numerics, triton
from flashvl_kernels.spec import REGISTRY, OpSpec
from flashvl_kernels.triton import launch

FOLDER = Path(__file__).with_name("faults")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass in it looks there
    spec.loader.exec_module(module)
    return module


def planted() -> list[Any]:
    """A pytest parameter for each op and fault."""
    return [
        pytest.param(REGISTRY[path.stem], fault, id=f"{path.stem}-{fault.name.replace(' ', '_')}")
        for path in sorted(FOLDER.glob("*.py"))
        for fault in load(path, f"faults_{path.stem}").FAULTS
    ]


@pytest.mark.parametrize(("spec", "fault"), planted())
def test_a_planted_fault_is_seen(
    spec: OpSpec, fault: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = fault.file or spec.name
    original = Path(str(triton.module(stem).__file__))
    source = original.read_text()
    assert source.count(fault.old) == 1, f"the kernel file holds {fault.old!r} other than once"
    path = tmp_path / f"{stem}.py"
    path.write_text(source.replace(fault.old, fault.new))
    module = load(path, f"faulty_{stem}")
    if fault.file:
        for other in REGISTRY:  # whoever imported the sound file imports again
            monkeypatch.delitem(sys.modules, f"{triton.__name__}.{other}", raising=False)
            monkeypatch.delattr(triton, other, raising=False)
        name = f"flashvl_kernels.triton.{stem}"
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(triton, stem, module, raising=False)
        module = load(original.with_name(f"{spec.name}.py"), f"faulty_{spec.name}")

    if fault.one_processor:
        monkeypatch.setattr(launch, "describe", lambda _: SMALL)
    (sample,) = (sample for sample in spec.samples if sample.name == fault.sample)
    flat = flat_call(spec, sample, DTYPES[fault.dtype])
    try:
        with executed():
            got = numerics.results(spec, module.run, flat)
        share = getattr(module, "BIT_EQUAL", 0.0)
        report = wrong(spec, flat, got) or rounds_otherwise(spec, share, flat, got)
    except Fault as found:
        report = str(found)
    assert report, "nothing was reported"
    assert re.search(fault.shows, report), report


def test_every_kernel_has_planted_faults() -> None:
    claimed = {spec.name for spec in REGISTRY.values() if "triton" in spec.kernels}
    assert {path.stem for path in FOLDER.glob("*.py")} == claimed
