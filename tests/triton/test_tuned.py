"""The table of measured launch choices: chosen by the timer, kept whole, launched; or not used.

Kernels do nothing here and the timer is the test's own, so that what is chosen is known."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashvl_kernels import cli, numerics
from flashvl_kernels import triton as backend

if reason := backend.missing():
    pytest.skip(reason, allow_module_level=True)

from semantics import replaced_launch
from triton.runtime import driver

from flashvl_kernels.gpu import A100, EMULATED, H100, MI300X, RTX_3090, Device
from flashvl_kernels.spec import REGISTRY, capture
from flashvl_kernels.triton import dispatch, flash, launch, product, space, tune, tuned

ROWS = torch.ones(512, 64, dtype=torch.bfloat16)
SWIGLU = REGISTRY["swiglu"]


class Gpu:
    """Launches nothing. `facts` gives the resources of a kernel launched with these constants."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []
        self.facts: Callable[[dict[str, Any]], tuple[int, int, int]] = lambda _: (0, 32, 0)

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        self.launched.append(constants)
        shared, registers, spills = self.facts(constants)
        return SimpleNamespace(
            run=lambda *_: self.launched.append(constants), function=0, packed_metadata=(),
            metadata=SimpleNamespace(shared=shared, num_warps=constants["num_warps"]),
            n_regs=registers, n_spills=spills,
        )  # fmt: skip

    def timer(self, milliseconds: Callable[[dict[str, Any]], float]) -> tune.Timer:
        def time(run: Callable[[], Any]) -> float:
            run()
            return milliseconds(self.launched[-1])

        return time


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tables"))
    monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_stream=lambda _: 0))
    found = Gpu()
    tuned.table.cache_clear()
    dispatch.forget()
    with replaced_launch(found.run), numerics.poisoned():
        yield found
    tuned.table.cache_clear()
    dispatch.forget()


def faster(outcomes: list[tune.Outcome]) -> dict[str, Any]:
    return {each.key: each.best for each in outcomes if each.best != each.default}


def trials(outcomes: list[tune.Outcome]) -> list[tune.Trial]:
    return [trial for each in outcomes for trial in each.trials]


def model() -> launch.Tile:
    return launch.tile(512, 32, 2, EMULATED)


def test_the_fastest_choice_is_found_written_and_launched(gpu: Gpu) -> None:
    wanted = replace(model(), rows=2 * model().rows, warps=2)
    timer = gpu.timer(
        lambda c: 1.0 if (c["ROWS"], c["num_warps"]) == (wanted.rows, wanted.warps) else 2.0
    )
    chosen = faster(tune.tune_call(SWIGLU, (ROWS,), timer))
    key = tuned.key("swiglu_kernel", 512, 32, 2)
    assert chosen == {key: wanted}

    tuned.save(EMULATED.name, {name: asdict(choice) for name, choice in chosen.items()})
    module = backend.module("swiglu")
    module.run(ROWS)
    assert (gpu.launched[-1]["ROWS"], gpu.launched[-1]["num_warps"]) == (wanted.rows, wanted.warps)
    module.run(ROWS[:300])  # in the table as the next power of two
    assert gpu.launched[-1]["ROWS"] == wanted.rows
    module.run(ROWS[:8])
    assert gpu.launched[-1]["ROWS"] == launch.tile(8, 32, 2, EMULATED).rows, "not in the table"


def test_a_gain_below_the_noise_keeps_the_model(gpu: Gpu) -> None:
    def milliseconds(constants: dict[str, Any]) -> float:
        return 2.0 if constants["ROWS"] == model().rows else 1.97

    assert faster(tune.tune_call(SWIGLU, (ROWS,), gpu.timer(milliseconds))) == {}


def test_a_lucky_measurement_is_measured_again(gpu: Gpu) -> None:
    """The first time of each choice but the model's is half of what it takes."""
    met: set[tuple[int, int]] = set()

    def milliseconds(constants: dict[str, Any]) -> float:
        choice = constants["ROWS"], constants["num_warps"]
        lucky = choice not in met and choice != (model().rows, model().warps)
        met.add(choice)
        return 1.0 if lucky else 2.0

    outcomes = tune.tune_call(SWIGLU, (ROWS,), gpu.timer(milliseconds))
    assert faster(outcomes) == {} and outcomes[0].best_ms == 2.0
    assert min(trial.milliseconds or 9.0 for trial in trials(outcomes)) == 1.0


def test_time_that_is_over_ends_the_trials(gpu: Gpu) -> None:
    assert tune.tune_call(SWIGLU, (ROWS,), gpu.timer(lambda _: 1.0), until=0.0) == []


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ((300_000, 32, 0), "300000 bytes of shared memory"),
        ((0, 32, 16), "spills 16 bytes"),
        ((0, 60_000, 0), "registers"),
    ],
)
def test_what_does_not_fit_is_not_timed(gpu: Gpu, facts: tuple[int, int, int], why: str) -> None:
    """However fast: only the model's choice has resources that fit."""
    gpu.facts = lambda c: (0, 32, 0) if c["ROWS"] == model().rows else facts
    timer = gpu.timer(lambda c: 2.0 if c["ROWS"] == model().rows else 1.0)
    outcomes = tune.tune_call(SWIGLU, (ROWS,), timer)
    assert faster(outcomes) == {}
    dropped = [trial for trial in trials(outcomes) if trial.choice.rows != model().rows]
    assert dropped and all(why in t.reason and t.milliseconds is None for t in dropped)


def test_what_the_compiler_refuses_is_dropped(gpu: Gpu) -> None:
    def facts(constants: dict[str, Any]) -> tuple[int, int, int]:
        if constants["num_warps"] != model().warps:
            raise RuntimeError("out of resources")
        return 0, 32, 0

    gpu.facts = facts
    outcomes = tune.tune_call(
        SWIGLU, (ROWS,), gpu.timer(lambda c: 2.0 if c["ROWS"] == model().rows else 1.0)
    )
    assert [choice.warps for choice in faster(outcomes).values()] == [model().warps]
    assert any("out of resources" in trial.reason for trial in trials(outcomes))


def test_another_result_is_dropped(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backend.module("swiglu")
    real = module.run

    def run(x: torch.Tensor) -> torch.Tensor:
        y = real(x)
        return y.fill_(float(gpu.launched[-1]["ROWS"]))

    monkeypatch.setattr(module, "run", run)
    timer = gpu.timer(lambda c: 2.0 if c["ROWS"] == model().rows else 1.0)
    outcomes = tune.tune_call(SWIGLU, (ROWS,), timer)
    assert faster(outcomes) == {}
    assert any(trial.reason == "gives another result" for trial in trials(outcomes))


def saved() -> Path:
    choices = {tuned.key("swiglu_kernel", 512, 32, 2): {"rows": 2, "columns": 32, "warps": 1}}
    return tuned.save(EMULATED.name, choices)


def launched_rows(gpu: Gpu) -> int:
    backend.module("swiglu").run(ROWS)
    return int(gpu.launched[-1]["ROWS"])


def test_a_sound_table_is_used_in_silence(gpu: Gpu) -> None:
    saved()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launched_rows(gpu) == 2
    assert tuned.why_not(EMULATED.name) is None


def test_no_table_is_no_warning(gpu: Gpu) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launched_rows(gpu) == model().rows


@pytest.mark.parametrize("field", ["version", "gpu", "triton", "sources"])
def test_a_stale_table_is_ignored_with_a_warning(gpu: Gpu, field: str) -> None:
    place = saved()
    content = json.loads(place.read_text())
    place.write_text(json.dumps(content | {field: "other"}))
    with pytest.warns(UserWarning, match=f"stale: it is for {field} other"):
        assert launched_rows(gpu) == model().rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launched_rows(gpu)  # told once


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "list", "binary"])
def test_a_damaged_table_is_ignored_with_a_warning(gpu: Gpu, damage: str) -> None:
    place = saved()
    text = place.read_text()
    damaged = {
        "cut": text[: len(text) // 2], "changed": text.replace('"rows": 2', '"rows": 3'),
        "empty": "", "list": "[]", "binary": "\0",
    }[damage]  # fmt: skip
    assert damaged != text
    place.write_text(damaged)
    with pytest.warns(UserWarning, match="damaged|cannot be read"):
        assert launched_rows(gpu) == model().rows


def test_a_choice_of_another_kind_is_not_applied(gpu: Gpu) -> None:
    tuned.save(EMULATED.name, {tuned.key("swiglu_kernel", 512, 32, 2): {"keys": 2}})
    assert launched_rows(gpu) == model().rows


def test_a_failed_write_leaves_the_old_table(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved()
    before = place.read_text()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(json, "dump", full)
        with pytest.raises(OSError, match="No space"):
            tuned.save(EMULATED.name, {})
    assert place.read_text() == before
    assert os.listdir(place.parent) == [place.name], "no partial file is left"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to tune on")
def test_without_a_gpu_the_command_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune"]) == 1
    assert "no CUDA or ROCm GPU" in capsys.readouterr().err


CHOICES = [
    (launch.tile, H100, (300, 1536, 2)),
    (launch.tile, MI300X, (1, 8960, 2)),
    (product.blocks, H100, (1, 1536, 8960, 2)),
    (product.blocks, H100, (256, 1536, 5120, 2)),
    (product.blocks, H100, (7, 5, 3, 2)),
    (product.blocks, MI300X, (1024, 4304, 1152, 2)),
    (product.blocks, RTX_3090, (1024, 4304, 1152, 2)),
    (product.blocks, A100, (1024, 4304, 1152, 4)),
    (product.blocks, A100, (1, 4304, 1152, 4)),
    (flash.block, H100, (1024, 16, 72, 2)),
    (flash.block, H100, (1024, 16, 256, 2)),
    (flash.block, A100, (6, 2, 128, 2)),
    (flash.block, A100, (600, 2, 128, 4)),
    (flash.block, MI300X, (600, 2, 128, 2)),
]


@pytest.mark.parametrize(
    ("model", "device", "numbers"),
    CHOICES,
    ids=[f"{model.__name__}-{device.name}-{numbers}" for model, device, numbers in CHOICES],
)
def test_neighbours_are_launchable_and_few(
    model: Callable[..., Any], device: Device, numbers: tuple[int, ...]
) -> None:
    default = model(*numbers, device)
    found = tune.neighbours(default, device, *numbers)
    assert 0 < len(found) <= space.MOST and default not in found
    for choice in found:
        fields = asdict(choice)
        assert all(
            n & (n - 1) == 0
            for name, n in fields.items()
            if name in ("rows", "columns", "units", "step", "keys", "warps")
        )
        if isinstance(choice, product.Blocks):
            columns = numbers[2]
            assert choice.part % choice.step == 0
            assert (choice.rows + choice.units) * choice.step * numbers[3] * choice.stages <= (
                device.shared_bytes_per_block
            )
            assert (choice.splits - 1) * choice.part < columns <= choice.splits * choice.part


def test_every_kernel_with_a_choice_asks_for_it(gpu: Gpu) -> None:
    """An op that launched what its model says without asking could not be tuned."""
    fixed = {"image_to_patches"}  # one block size, in its file
    for spec in REGISTRY.values():
        if "triton" not in spec.kernels:
            continue
        sample = next(s for s in spec.samples if s.kind == "typical")
        built = sample.build(torch.bfloat16)
        flat = capture(spec.function, *built.args, **built.kwargs)[1]
        with tuned.tuning() as session:
            backend.module(spec.name).run(*flat)
        assert bool(session.asked) == (spec.name not in fixed), spec.name
