"""Every instruction-set level of the extension, each in its own process: the level is read once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashvl_kernels import extension

# Rows of several widths: below one vector, with every tail, and the decoder's own 1536.
KERNELS = """
import sys, torch
from flashvl_kernels import extension
torch.set_num_threads(1)
out = {"level": extension.cpu_level()}
rms_norm = torch.ops.flashvl_cpu.rms_norm
generator = torch.Generator().manual_seed(7)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for width in (1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 77, 129, 1536):
        x, r = (torch.randn(5, width, generator=generator).to(dtype) for _ in range(2))
        w = torch.randn(width, generator=generator).to(dtype)
        out[str(dtype), width, "plain"] = rms_norm(x, w, 1e-6, None)
        out[str(dtype), width, "residual"] = rms_norm(x, w, 1e-6, r)
for dtype in (torch.bfloat16, torch.float16):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).reshape(256, 256)
    order = torch.randperm(65536, generator=generator)
    other = bits.reshape(-1)[order].reshape(256, 256)
    ones = torch.ones(256, dtype=dtype)
    for name, addend in (("zero", torch.zeros_like(bits)), ("shuffled", other)):
        out[str(dtype), name] = (bits + addend, rms_norm(bits, ones, 1e-6, addend)[1])
torch.save(out, sys.argv[1])
"""

LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")


RESULTS: dict[str, dict] = {}


@pytest.fixture
def at_level(tmp_path: Path, library: Path, run_python):
    """The results of KERNELS at a level, run once; skips where this machine or build lacks it."""

    def results(level: str) -> dict:
        if level not in extension.available_levels():
            pytest.skip(f"level {level} is not available here: {extension.available_levels()}")
        if level not in RESULTS:
            path = tmp_path / f"{level}.pt"
            done = run_python(KERNELS, str(path), FLASHVL_CPU_LEVEL=level)
            assert done.returncode == 0, done.stderr
            RESULTS[level] = torch.load(path)
        return RESULTS[level]

    return results


@pytest.mark.parametrize("level", LEVELS[1:])
def test_levels_agree_with_scalar(at_level, level: str) -> None:
    higher, scalar = at_level(level), at_level("scalar")
    assert (higher["level"], scalar["level"]) == (level, "scalar")
    compared = 0
    for key, result in scalar.items():
        if key == "level" or key[1] in ("zero", "shuffled"):
            continue
        # The squares are added in another order. A lane adds at most width/8 of them and the tree
        # over lanes and running sums 8 more, each off by half a unit of fp32 on either side, and
        # the square root halves the total. That can move both roundings of the result by a unit.
        width = key[1]
        unit = torch.finfo(result[0].dtype).eps
        rtol = 2 * unit + (width / 8 + 8) * torch.finfo(torch.float32).eps / 2
        torch.testing.assert_close(higher[key][0], result[0], rtol=rtol, atol=0.0)
        assert torch.equal(higher[key][1], result[1]), "one correctly rounded addition"
        compared += 1
    assert compared == 3 * 15 * 2


@pytest.mark.parametrize("level", LEVELS)
def test_conversions_are_exact_for_every_bit_pattern(at_level, level: str) -> None:
    """All 65536 values of both half formats, subnormals, infinities and NaN included."""
    results = at_level(level)
    for dtype in ("torch.bfloat16", "torch.float16"):
        for name in ("zero", "shuffled"):
            expected, got = results[dtype, name]
            assert torch.equal(got.isnan(), expected.isnan())
            numbers = ~expected.isnan()
            assert torch.equal(got[numbers].view(torch.int16), expected[numbers].view(torch.int16))


REPORT = """
import torch, flashvl_kernels
from flashvl_kernels import extension
print(extension.EXTENSION.loaded, extension.EXTENSION.reason)
print(flashvl_kernels.rms_norm(torch.ones(1, 4), torch.ones(4))[0].tolist())
try:
    torch.ops.flashvl_cpu.rms_norm(torch.ones(1, 4), torch.ones(4), 1e-6, None)
except ValueError as error:
    print("ValueError", error)
"""


def test_an_unknown_level_is_refused_and_everything_still_runs(library: Path, run_python) -> None:
    done = run_python(REPORT, FLASHVL_CPU_LEVEL="avx3")
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("False FLASHVL_CPU_LEVEL is 'avx3': no such level. Set it to one of")
    assert "scalar" in first
    assert second.startswith("[[0.99999")
    assert third.startswith("ValueError FLASHVL_CPU_LEVEL is 'avx3'")
    assert "the CPU kernels are off" in done.stderr


def test_a_level_the_cpu_lacks_is_refused(library: Path, run_python) -> None:
    features = set(extension.cpu_features())
    needs = {"amx": "amx_tile", "avx512": "avx512f", "avx2": "avx2"}
    lacking = [level for level, feature in needs.items() if feature not in features]
    if not lacking:
        pytest.skip("this CPU has every level")
    done = run_python(REPORT, FLASHVL_CPU_LEVEL=lacking[0])
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"False FLASHVL_CPU_LEVEL is '{lacking[0]}': this CPU lacks ")
    assert needs[lacking[0]] in first
