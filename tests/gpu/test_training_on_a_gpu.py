"""Training on a GPU: the loss and the weights after a step are those of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")

from flashvl.train import tiles
from flashvl_bench.gpu.target import missing
from flashvl_kernels import backend

if (reason := missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

STAGE = tiles.Stage("join", 200, 1e-3, tiles.EVERYTHING, 4, pages=0.3)


def trainer(out: Path, device: str) -> tiles.Trainer:
    return tiles.Trainer(out, seed=5, workers=0, stages=(STAGE,), cases=[], device=device)


def test_a_step_is_that_of_the_cpu(tmp_path: Path) -> None:
    """fp32 on both, Muon's iteration in bf16 on the GPU alone: its matrices differ by that much."""
    host, gpu = trainer(tmp_path / "cpu", "cpu"), trainer(tmp_path / "cuda", "cuda")
    before = {name: value.clone() for name, value in host.kept.state_dict().items()}
    host.step = gpu.step = 100  # where the rate is highest
    with backend("torch"):
        for number in range(3):
            (ours,) = host.batches(STAGE, 100 + number, 1)
            (theirs,) = gpu.batches(STAGE, 100 + number, 1)
            assert theirs.ids.is_cuda and not theirs.answers.is_cuda
            want, got = host.learn(STAGE, ours), gpu.learn(STAGE, theirs)
            assert want.keys() == got.keys()
            for name in ("loss", "dense", "point"):
                assert got.get(name) == pytest.approx(want.get(name), rel=2e-2), name
            if number == 0:
                assert got["loss"] == pytest.approx(want["loss"], rel=1e-4)
    ended = gpu.kept.state_dict()
    for name, value in host.kept.state_dict().items():
        moved = torch.linalg.vector_norm(value - before[name])
        apart = torch.linalg.vector_norm(value - ended[name].cpu())
        assert apart <= 0.25 * moved + 1e-6, name


def test_a_state_goes_on_elsewhere(tmp_path: Path) -> None:
    gpu = trainer(tmp_path, "cuda")
    with backend("torch"):
        (batch,) = gpu.batches(STAGE, 0, 1)
        gpu.learn(STAGE, batch)
        gpu.step = 1
        gpu.save()
        host = trainer(tmp_path, "cpu")
        host.resume()
        assert host.step == 1
        for name, value in gpu.kept.state_dict().items():
            assert torch.equal(host.kept.state_dict()[name], value.cpu()), name
            assert torch.equal(host.average[name], gpu.average[name].cpu()), name
        (batch,) = host.batches(STAGE, 1, 1)
        host.learn(STAGE, batch)
