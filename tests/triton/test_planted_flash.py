"""The tests see faults in flash.py, too, which the kernel files of attention import."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from planted import Planted
from semantics import Fault, executed, wrong
from test_kernels_from_ir import flat_call
from test_planted_faults import DTYPES, load

from flashvl_kernels import numerics, triton
from flashvl_kernels.spec import REGISTRY

SPEC = REGISTRY["tile_attention"]
FAULTS = (
    Planted("values not rescaled", "acc * fade[:, None]", "acc", "maxima that rise", "wrong"),
    Planted("sum not rescaled", "total * fade", "total", "maxima that rise", "wrong"),
    Planted(
        "tail not rescaled", "acc_tail * fade[:, None]", "acc_tail", "maxima that rise", "wrong"
    ),
    Planted(
        "a row of -inf is NaN",
        'tl.where(higher == float("-inf"), 0.0, higher)',
        "higher",
        "scores of -inf",
        "wrong",
    ),
    Planted("scores not masked", "if not ALL:", "if ALL:", "SigLIP2 heads", "wrong"),
    Planted(
        "channels past the head are read",
        "tl.load(at, seen[:, None] & (column < D), 0.0)",
        "tl.load(at, seen[:, None], 0.0)",
        "head dim 7, odd rows",
        "outside|wrong",
    ),
    Planted(
        "32-bit keys",
        "key = seen.to(tl.int64)",
        "key = seen",
        "third token past 2^31",
        "outside|wrong",  # where the memory of another far tensor lies before this one's
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_planted_fault_is_seen(
    fault: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Path(str(triton.module(SPEC.name).__file__))
    source = kernels.with_name("flash.py").read_text()
    assert source.count(fault.old) == 1, f"flash.py holds {fault.old!r} other than once"
    (tmp_path / "faulty_flash.py").write_text(source.replace(fault.old, fault.new))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("faulty_flash", None)
    text, name = kernels.read_text(), "from flashvl_kernels.triton.flash import"
    assert text.count(name) == 1
    (tmp_path / kernels.name).write_text(text.replace(name, "from faulty_flash import"))
    module = load(tmp_path / kernels.name, "on_faulty_flash")

    (sample,) = (sample for sample in SPEC.samples if sample.name == fault.sample)
    flat = flat_call(SPEC, sample, DTYPES[fault.dtype])
    try:
        with executed():
            report = wrong(SPEC, flat, numerics.results(SPEC, module.run, flat))
    except Fault as found:
        report = str(found)
    assert report, "nothing was reported"
    assert re.search(fault.shows, report), report
