"""The ceilings agree with a C program that shares no code with us, and `bench_op` measures by them.

Both take turns, and the best turn of each counts, because interference only ever slows one down. On
a machine that is never quiet for a tenth of a second a best may stay below what the machine can do:
turns go on until both agree, for a minute at most. A measurement that is off by more than a tenth
can take as many turns as it likes.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flashvl_bench import ceilings, machine
from flashvl_kernels import extension
from tests.slow import SLOW

WITHIN = 0.1
FEWEST_TURNS, MOST_SECONDS = 8, 40.0
TURN = 0.15
BYTES = ceilings.buffer_bytes(machine.last_level_cache())
FLAGS = ("-O3", "-march=native", "-fno-tree-loop-distribute-patterns", "-pthread")

Rate = Callable[[], float]

on_a_quiet_machine = pytest.mark.skipif(
    not SLOW,
    reason="a shared machine's bandwidth moves by more than this allows; FLASHVL_SLOW_TESTS=1",
)


def bests(ours: Rate, theirs: Rate, seconds: float = MOST_SECONDS) -> tuple[float, float]:
    """The best rates, in turns until they agree or the time is up."""
    mine = other = 0.0
    start = time.perf_counter()
    for turn in range(10**6):
        mine, other = max(mine, ours()), max(other, theirs())
        if turn + 1 >= FEWEST_TURNS and agree(mine, other):
            break
        if turn + 1 >= FEWEST_TURNS and time.perf_counter() - start > seconds:
            break
    return mine, other


def same(mine: float, other: float) -> None:
    """Both rates agree."""
    assert agree(mine, other), f"{mine:.4g} a second, the C program {other:.4g}"


def agree(mine: float, other: float) -> bool:
    return abs(mine - other) <= WITHIN * max(mine, other)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Rate]]:
    """The C program, running; a function from the kind of work to its rate."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on PATH")
    if not extension.EXTENSION.loaded:
        pytest.skip(f"no loops of ours to compare: {extension.EXTENSION.reason}")
    binary = tmp_path_factory.mktemp("ceilings") / "ceilings"
    source = Path(__file__).with_name("ceilings.c")
    subprocess.run([compiler, *FLAGS, str(source), "-o", str(binary)], check=True)
    command = [str(binary), str(torch.get_num_threads()), str(BYTES)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None

    def rate(kind: str) -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{kind} {TURN}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    yield lambda kind: lambda: rate(kind)
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


@pytest.fixture(scope="module")
def source() -> torch.Tensor:
    return torch.ones(BYTES // 4)


@on_a_quiet_machine
def test_streaming_read(program: Callable[[str], Rate], source: torch.Tensor) -> None:
    mine, other = bests(lambda: ceilings._stream_read(source, TURN), program("read"))
    same(mine, other)


@on_a_quiet_machine
def test_copy(program: Callable[[str], Rate], source: torch.Tensor) -> None:
    target = torch.zeros_like(source)

    def ours() -> float:
        return 2 * source.nbytes / ceilings._best(lambda: target.copy_(source), TURN)

    mine, other = bests(ours, program("copy"))
    same(mine, other)


@on_a_quiet_machine
@pytest.mark.parametrize(("loop", "kind"), [("fma_f32", "fma"), ("tiles_bf16", "tiles")])
def test_products_in_registers(program: Callable[[str], Rate], loop: str, kind: str) -> None:
    if extension.cpu_level() not in ("avx512", "avx512_bf16", "amx") and loop == "fma_f32":
        level = extension.available_levels()[-1]
        if level != extension.cpu_level():
            pytest.skip(f"the C program uses the whole CPU, the kernels {extension.cpu_level()}")
    if ceilings.register_loops(0.01).get(loop, 0.0) == 0:
        pytest.skip(f"{loop} is not of the level {extension.cpu_level()}")

    def ours() -> float:
        return float(torch.ops.flashvl_cpu.peak(loop, TURN))

    mine, other = bests(ours, program(kind))
    same(mine, other)


def test_a_ceiling_that_is_half_the_truth_never_agrees(
    program: Callable[[str], Rate], source: torch.Tensor
) -> None:
    """The comparison can fail: the C program reads everything twice and counts it once."""
    mine, other = bests(
        lambda: ceilings._stream_read(source, TURN), program("half"), seconds=3 * TURN
    )
    assert not agree(mine, other) and mine > 1.3 * other
