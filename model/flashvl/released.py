"""The key names of a released checkpoint, and where each tensor lies in our fused parameters.

Names: Qwen2ForCausalLM's under `llm.`; SigLIP's and AIMv2's own under `vit.` (seen in the published
models of those names); `adp.p0.{0,1,3}` and `adp.proj` under `adp.` (from the published description
of the adapter as a Sequential, not from the files: the one guess, and this table the one place).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flashvl.config import FlashVLConfig

# In the released files, but not part of what the model computes.
UNUSED = re.compile(r"vit\.head\..*|vit\.embeddings\.position_ids|.*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Piece:
    """The released tensor `key` of `shape`: `rows` rows of our `parameter` from `first` on."""

    key: str
    parameter: str
    shape: tuple[int, ...]
    first: int
    rows: int


def released(config: FlashVLConfig) -> list[Piece]:
    """Every tensor of a released checkpoint of this configuration."""
    table = _Table()
    vision, adapter, decoder = config.vision, config.adapter, config.decoder
    (_siglip if vision.kind == "siglip2" else _aimv2)(table, config)
    for ours, theirs, inputs, outputs in (
        ("fc1", "p0.1", adapter.input, adapter.inner),
        ("fc2", "p0.3", adapter.inner, adapter.inner),
        ("proj", "proj", adapter.inner, adapter.output),
    ):
        table.linear(f"adapter.{ours}", [(f"adp.{theirs}", outputs)], inputs, bias=True)
    table.norm("adapter.norm", "adp.p0.0", adapter.input, bias=True)

    table.put("decoder.table", "llm.model.embed_tokens.weight", (decoder.vocab, decoder.dim))
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    for i in range(decoder.layers):
        ours, theirs = f"decoder.layers.{i}", f"llm.model.layers.{i}"
        table.norm(f"{ours}.norm1", f"{theirs}.input_layernorm", decoder.dim)
        parts = [(f"{theirs}.self_attn.{x}_proj", n) for x, n in (("q", q), ("k", kv), ("v", kv))]
        table.linear(f"{ours}.qkv", parts, decoder.dim, bias=True)
        table.linear(f"{ours}.out", [(f"{theirs}.self_attn.o_proj", decoder.dim)], q)
        table.norm(f"{ours}.norm2", f"{theirs}.post_attention_layernorm", decoder.dim)
        parts = [(f"{theirs}.mlp.{x}_proj", decoder.mlp) for x in ("gate", "up")]
        table.linear(f"{ours}.gate_up", parts, decoder.dim)
        table.linear(f"{ours}.down", [(f"{theirs}.mlp.down_proj", decoder.dim)], decoder.mlp)
    table.norm("decoder.norm", "llm.model.norm", decoder.dim)
    if not decoder.tie_embeddings:
        table.linear("decoder.head", [("llm.lm_head", decoder.vocab)], decoder.dim)
    return table.pieces


def _siglip(table: _Table, config: FlashVLConfig) -> None:
    c = config.vision
    name = "vit.embeddings.patch_embedding"
    table.put("vision.patch.weight", f"{name}.weight", (c.dim, 3, c.patch, c.patch))
    table.put("vision.patch.bias", f"{name}.bias", (c.dim,))
    positions = (c.positions or c.tokens, c.dim)
    table.put("vision.positions", "vit.embeddings.position_embedding.weight", positions)
    for i in range(c.layers):
        ours, theirs = f"vision.blocks.{i}", f"vit.encoder.layers.{i}"
        table.norm(f"{ours}.norm1", f"{theirs}.layer_norm1", c.dim, bias=True)
        parts = [(f"{theirs}.self_attn.{x}_proj", c.dim) for x in "qkv"]
        table.linear(f"{ours}.qkv", parts, c.dim, bias=True)
        table.linear(f"{ours}.out", [(f"{theirs}.self_attn.out_proj", c.dim)], c.dim, bias=True)
        table.norm(f"{ours}.norm2", f"{theirs}.layer_norm2", c.dim, bias=True)
        table.linear(f"{ours}.fc1", [(f"{theirs}.mlp.fc1", c.mlp)], c.dim, bias=True)
        table.linear(f"{ours}.fc2", [(f"{theirs}.mlp.fc2", c.dim)], c.mlp, bias=True)
    table.norm("vision.norm", "vit.post_layernorm", c.dim, bias=True)


def _aimv2(table: _Table, config: FlashVLConfig) -> None:
    c = config.vision
    name = "vit.preprocessor"
    table.put("vision.patch.weight", f"{name}.patchifier.proj.weight", (c.dim, 3, c.patch, c.patch))
    table.put("vision.patch.bias", f"{name}.patchifier.proj.bias", (c.dim,))
    table.norm("vision.patch_norm", f"{name}.patchifier.norm", c.dim)
    table.put("vision.positions", f"{name}.pos_embed", (1, c.positions or c.tokens, c.dim))
    for i in range(c.layers):
        ours, theirs = f"vision.blocks.{i}", f"vit.trunk.blocks.{i}"
        table.norm(f"{ours}.norm1", f"{theirs}.norm_1", c.dim)
        table.linear(f"{ours}.qkv", [(f"{theirs}.attn.qkv", 3 * c.dim)], c.dim)
        table.linear(f"{ours}.out", [(f"{theirs}.attn.proj", c.dim)], c.dim)
        table.norm(f"{ours}.norm2", f"{theirs}.norm_2", c.dim)
        parts = [(f"{theirs}.mlp.fc1", c.mlp), (f"{theirs}.mlp.fc3", c.mlp)]
        table.linear(f"{ours}.gate_up", parts, c.dim)
        table.linear(f"{ours}.down", [(f"{theirs}.mlp.fc2", c.dim)], c.mlp)
    table.norm("vision.norm", "vit.trunk.post_trunk_norm", c.dim)


@dataclass
class _Table:
    pieces: list[Piece] = field(default_factory=list)

    def put(self, parameter: str, key: str, shape: tuple[int, ...], first: int = 0) -> None:
        rows = shape[1] if len(shape) == 3 else shape[0]
        self.pieces.append(Piece(key, parameter, shape, first, rows))

    def norm(self, ours: str, theirs: str, dim: int, bias: bool = False) -> None:
        for part in ("weight", "bias") if bias else ("weight",):
            self.put(f"{ours}.{part}", f"{theirs}.{part}", (dim,))

    def linear(
        self, ours: str, theirs: list[tuple[str, int]], inputs: int, bias: bool = False
    ) -> None:
        """Released layers (name, outputs) that lie one below the other in our fused one."""
        first = 0
        for name, outputs in theirs:
            self.put(f"{ours}.weight", f"{name}.weight", (outputs, inputs), first)
            if bias:
                self.put(f"{ours}.bias", f"{name}.bias", (outputs,), first)
            first += outputs


def plain_key(key: str) -> str:
    """Without the wrapper that some exports keep around the vision tower."""
    return key.replace("vit.vision_model.", "vit.", 1)
