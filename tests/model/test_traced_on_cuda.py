"""The whole model traced by torch.compile and torch.export with fake CUDA tensors: one graph, in
which every op is one node, and which holds for every batch and length."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor, nn
from torch.export import Dim

from flashvl import FlashVL, FlashVLConfig
from flashvl.step_inputs import Indices

CONFIGS = [
    pytest.param(FlashVLConfig.tiny(), id="tiny"),
    pytest.param(FlashVLConfig.static_2b(), id="static_2b"),
]
CAPACITY = 512


class Prompt(nn.Module):
    """Images and ids to the logits of the next token."""

    def __init__(self, config: FlashVLConfig) -> None:
        super().__init__()
        self.model = FlashVL(config, "cuda", torch.bfloat16)

    def forward(self, tiles: Tensor, ids: Tensor) -> Tensor:
        rows = self.model.embed_images(tiles)
        embeds = self.model.embed(ids, rows.flatten(0, 1))
        states = self.model.decoder.forward_train(embeds)
        return self.model.decoder.logits(states[:, -1])

    def example(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """One image a prompt."""
        side = self.model.config.vision.tile_px
        tiles = torch.empty(batch, 3, side, side, device="cuda", dtype=torch.bfloat16)
        return tiles, torch.zeros(batch, length, device="cuda", dtype=torch.int64)

    def dynamic(self) -> tuple[Any, ...]:
        batch = Dim("batch", min=1, max=64)
        return {0: batch}, {0: batch, 1: Dim("length", min=2, max=1000)}

    def ops(self) -> dict[str, int]:
        """Nodes of each op."""
        config = self.model.config
        vision, decoder = config.vision.layers, config.decoder.layers
        siglip = config.vision.kind == "siglip2"
        return {
            # The patches; two a layer; three of the adapter; the logits.
            "linear": 1 + 2 * vision + 3 + 2 * decoder + 1,
            "tile_attention": vision,
            "compress_tokens": 1,
            "merge_image_tokens": 1,
            "rope_qkv": decoder,
            "causal_attention": decoder,
            "swiglu_mlp": decoder + (0 if siglip else vision),
            **({"gelu_mlp": vision, "layer_norm": 1} if siglip else {"rms_norm": 2}),
        }


class Layers:
    """As much of a KVCache as a decode step reads."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.keys[index], self.values[index]


class Step(nn.Module):
    """One more id a sequence to the next ones, with keys and values written into the cache."""

    def __init__(self, config: FlashVLConfig) -> None:
        super().__init__()
        self.decoder = FlashVL(config, "cuda", torch.bfloat16).decoder

    def forward(
        self, ids: Tensor, places: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        cache: Any = Layers(keys, values)
        at = Indices(*places)
        states = self.decoder._one_row_each(cache, self.decoder.embed(ids), at)
        return self.decoder.greedy(states)

    def example(self, batch: int, length: int) -> tuple[Any, ...]:
        """length: of the cache."""
        config = self.decoder.config
        numbers = [torch.zeros(batch, device="cuda", dtype=torch.int64) for _ in range(4)]
        shape = (batch, config.kv_heads, length, config.head_dim)
        keys, values = (
            [torch.empty(shape, device="cuda", dtype=torch.bfloat16) for _ in range(config.layers)]
            for _ in range(2)
        )
        return numbers[0], numbers[1:], keys, values

    def dynamic(self) -> tuple[Any, ...]:
        batch, length = Dim("batch", min=2, max=64), Dim("length", min=2, max=1000)
        cache = [{0: batch, 2: length}] * self.decoder.config.layers
        return {0: batch}, [{0: batch}] * 3, cache, cache

    def ops(self) -> dict[str, int]:
        """Nodes of each op."""
        layers = self.decoder.config.layers
        return {
            "linear": 2 * layers,
            "rope_qkv_cached": layers,
            "decode_attention": layers,
            "swiglu_mlp": layers,
            "argmax_head": 1,
        }


def nodes(graph: torch.fx.Graph) -> dict[str, int]:
    """How often each op of ours is called."""
    names = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return dict(Counter(name.split(".")[1] for name in names if name.startswith("flashvl.")))


@pytest.mark.parametrize("part", [Prompt, Step])
@pytest.mark.parametrize("config", CONFIGS)
def test_compiled_as_one_graph_for_every_shape(
    part: type[Prompt] | type[Step], config: FlashVLConfig
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    with fake_cuda() as mode, mode:
        module = part(config).eval()
        module(*module.example(5, 300))  # makes the tables of angles
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=keep)
        for batch, length in ((5, 300), (7, 411)):
            got = compiled(*module.example(batch, length))
            assert got.device.type == "cuda" and got.shape[0] == batch
    assert len(graphs) == 1, "another batch and length needed another graph"
    assert nodes(graphs[0].graph) == module.ops()


@pytest.mark.parametrize("part", [Prompt, Step])
@pytest.mark.parametrize("config", CONFIGS)
def test_exported_with_dynamic_shapes(
    part: type[Prompt] | type[Step], config: FlashVLConfig
) -> None:
    with fake_cuda() as mode:
        with mode:
            module = part(config).eval()
            example = module.example(5, 300)
            module(*example)  # makes the tables of angles
        exported = torch.export.export(module, example, dynamic_shapes=module.dynamic())
    assert nodes(exported.graph) == module.ops()
    (result,) = (n for n in exported.graph.nodes if n.op == "output")
    assert isinstance(result.args[0][-1].meta["val"].shape[0], torch.SymInt)
    assert result.args[0][-1].meta["val"].device.type == "cuda"
