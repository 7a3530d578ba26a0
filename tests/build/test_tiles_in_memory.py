"""csrc/cpu/matrix/tile_emulated.h does what the AMX instructions do: bit for bit the steps that
Intel's manual writes down, and on a CPU that has them, theirs."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flashvl_kernels import extension
from tests.build.test_vec_math import level_flags

ROOT = Path(__file__).resolve().parents[2]
FEATURES = set(extension.cpu_features())
pytestmark = pytest.mark.skipif(
    "avx512_bf16" not in FEATURES, reason="the tiles in memory need AVX512_BF16"
)
Tile = np.ndarray  # uint8 [16, 64]
Product = Callable[[Tile, Tile, Tile], Tile]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The program on tiles in memory, or on those of the CPU."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("tiles")

    def build(emulated: bool) -> Path:
        program = folder / f"tiles-{emulated}"
        flags = [*level_flags(ROOT, "avx512_bf16"), "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
        subprocess.run(
            [compiler, "-std=c++20", "-O2", "-ffp-contract=off", *flags,
             "-DFLASHVL_LEVEL=amx", "-DFLASHVL_LEVEL_amx",
             *(["-DFLASHVL_EMULATED_TILES"] if emulated else []),
             "-I", str(ROOT / "csrc" / "cpu"), str(ROOT / "tests" / "build" / "tiles.cpp"),
             "-o", str(program)],
            check=True,
        )  # fmt: skip
        return program

    return build


@pytest.fixture(scope="module")
def emulated(built: Callable[[bool], Path]) -> Path:
    return built(True)


def run(program: Path, what: str, rows: int, a: Tile, b: Tile, c: Tile) -> Tile:
    done = subprocess.run(
        [program, what, str(rows)], input=b"".join(t.tobytes() for t in (a, b, c)),
        capture_output=True, check=True,
    )  # fmt: skip
    return np.frombuffer(done.stdout, np.uint8).reshape(16, 64)


def flushed(x: np.ndarray) -> np.ndarray:
    """fp32 whose subnormals are zero."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def bf16_product(a: Tile, b: Tile, c: Tile) -> Tile:
    """TDPBF16PS: even and odd terms summed apart, then both added to c."""
    wide = [flushed((t.view(np.uint16).astype(np.uint32) << 16).view(np.float32)) for t in (a, b)]
    left, right = wide[0], wide[1].reshape(16, 16, 2)
    sums = np.zeros((2, 16, 16), np.float32)
    for k in range(16):
        for half in range(2):
            term = left[:, 2 * k + half, None].astype(np.float64) * right[k, :, half]
            sums[half] = flushed((sums[half] + term).astype(np.float32))
    total = flushed(sums[0] + sums[1])
    return flushed(flushed(c.view(np.float32)) + total).view(np.uint8)


def byte_product(a: Tile, b: Tile, c: Tile) -> Tile:
    """TDPBSUD: signed bytes of a, unsigned of b, whatever the sum is in 32 bits."""
    left = a.view(np.int8).astype(np.int64)
    right = b.reshape(16, 16, 4).astype(np.int64).transpose(0, 2, 1).reshape(64, 16)
    return (c.view(np.int32) + left @ right).astype(np.int32).view(np.uint8)


def drawn(what: str, draw: int) -> tuple[Tile, Tile, Tile]:
    rng = np.random.default_rng(draw)
    if what == "bytes":
        a, b = (rng.integers(0, 256, (16, 64), np.uint8) for _ in range(2))
        return (
            a,
            b,
            rng.integers(-(2**31), 2**31, (16, 16), np.int64).astype(np.int32).view(np.uint8),
        )
    # Products and sums on either side of the smallest normal number, and of ordinary size.
    low, high = ((-66, -60), (-2, 2), (-130, 0))[draw % 3]
    numbers = [
        (rng.standard_normal((16, 32)) * 2.0 ** rng.uniform(low, high, (16, 32))).astype(np.float32)
        for _ in range(2)
    ]
    a, b = ((x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8) for x in numbers)
    c = (rng.standard_normal((16, 16)) * 2.0 ** (2 * low)).astype(np.float32)
    return a, b, c.view(np.uint8)


@pytest.mark.parametrize("rows", [16, 5, 1])
@pytest.mark.parametrize(("what", "product"), [("bf16", bf16_product), ("bytes", byte_product)])
def test_the_manuals_steps(emulated: Path, what: str, product: Product, rows: int) -> None:
    for draw in range(6):
        a, b, c = drawn(what, draw)
        got = run(emulated, what, rows, a, b, c)
        np.testing.assert_array_equal(got[:rows], product(a, b, c)[:rows])
        np.testing.assert_array_equal(got[rows:], c[rows:])


@pytest.mark.skipif(
    not {"amx_tile", "amx_bf16", "amx_int8"} <= FEATURES, reason="a CPU without AMX"
)
@pytest.mark.parametrize("what", ["bf16", "bytes"])
def test_the_tiles_of_this_cpu(emulated: Path, built: Callable[[bool], Path], what: str) -> None:
    real = built(False)
    for draw in range(6):
        for rows in (16, 5, 1):
            case = drawn(what, draw)
            np.testing.assert_array_equal(run(real, what, rows, *case),
                                          run(emulated, what, rows, *case))  # fmt: skip


def test_a_tile_that_nobody_configured_ends_the_process(emulated: Path) -> None:
    assert subprocess.run([emulated, "unconfigured"]).returncode == -signal.SIGABRT
