"""Weights as packing leaves them while a step learns, and their own again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flashvl import FlashVL, FlashVLConfig
from flashvl.layers import Linear
from flashvl.train import tiles
from flashvl.train.rounding import rounded
from flashvl.train.tiled_batches import TiledBatch
from flashvl_kernels.packing import pack

pytestmark = pytest.mark.usefixtures("one_thread")


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_weights_are_those_that_loading_packs(tmp_path: Path, format: str) -> None:
    FlashVL.random(FlashVLConfig.tiny(), 1).save_pretrained(tmp_path)
    model = FlashVL.from_pretrained(tmp_path, dtype=torch.float32, layout="rows")
    packed = FlashVL.from_pretrained(tmp_path, dtype=torch.float32, weights=format, layout="rows")
    before = values(model)
    with rounded(model, format):
        inside = values(model)
    layers = {n: m.packed for n, m in packed.named_modules() if isinstance(m, Linear) and m.packed}
    assert len(layers) > 20
    for name, value in inside.items():
        held = layers.get(name.removesuffix(".weight"))
        wanted = before[name] if held is None else held.dequantize(torch.float32)
        assert torch.equal(value, wanted), name
        assert held is None or not value.equal(before[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_gradient_is_that_at_the_rounded_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Linear(130, 16), Linear(16, 8))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 130)
    with rounded(model, "int4"):
        model(x).square().sum().backward()
    first, second = (pack(layer.weight.detach(), "int4").dequantize(torch.float32).requires_grad_()
                     for layer in model)  # fmt: skip
    hidden = x @ first.T + model[0].bias.detach()
    (hidden @ second.T + model[1].bias.detach()).square().sum().backward()
    for layer, weight in zip(model, (first, second), strict=True):
        torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-2)


def test_weights_come_back_after_an_error() -> None:
    layer = Linear(130, 16)
    nn.init.normal_(layer.weight)
    before = layer.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), rounded(layer, "int4"):
        raise KeyboardInterrupt
    assert torch.equal(layer.weight.detach(), before)


def test_every_second_step_of_a_packed_stage_sees_rounded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiles.Stage("pack", 4, 1e-3, ("adapter",), 2, (2, 2), packed="int4")
    trainer = tiles.Trainer(tmp_path, seed=3, workers=0, stages=(stage,), cases=[])
    seen: list[bool] = []

    def losses(
        self: tiles.Trainer, stage: tiles.Stage, batch: TiledBatch
    ) -> tuple[Tensor, dict[str, float]]:
        weight = self.adapters["pool"].fc1.weight
        seen.append(weight.equal(pack(weight.detach(), "int4").dequantize(weight.dtype)))
        return weight.sum(), {}

    monkeypatch.setattr(tiles.Trainer, "losses", losses)
    assert trainer.run()
    assert seen == [False, True, False, True]
