"""transformers' modules under released key names, filled with weights that show any mix-up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from flashvl.config import DecoderConfig, VisionConfig

AIMV2 = {
    "embeddings.patch_embed": "preprocessor.patchifier.proj",
    "embeddings.rms_norm": "preprocessor.patchifier.norm",
    "attention.out_proj": "attn.proj",
    "ffn.gate_proj": "mlp.fc1",
    "ffn.down_proj": "mlp.fc2",
    "ffn.up_proj": "mlp.fc3",
    "rms_norm1": "norm_1",
    "rms_norm2": "norm_2",
    "encoder.layers": "trunk.blocks",
}


def shake(module: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Random weights, biases and norms: ones and zeros would hide a wrong order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(mean + 0.1 * noise)
            else:
                inputs = parameter[0].numel()
                parameter.copy_(noise * (0.02 if "embed" in name else scale * inputs**-0.5))
    return module.eval()


def siglip(c: VisionConfig) -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=c.dim,
        intermediate_size=c.mlp,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        image_size=c.tile_px,
        patch_size=c.patch,
        layer_norm_eps=c.eps,
        hidden_act="gelu_pytorch_tanh",
    )
    return shake(SiglipVisionModel(config))


def aimv2(c: VisionConfig) -> Aimv2VisionModel:
    config = Aimv2VisionConfig(
        hidden_size=c.dim,
        intermediate_size=c.mlp,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        image_size=c.tile_px,
        patch_size=c.patch,
        rms_norm_eps=c.eps,
        use_head=False,
        qkv_bias=False,
        mlp_bias=False,
    )
    return shake(Aimv2VisionModel(config))


def qwen2(c: DecoderConfig, scale: float = 1.0) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=c.vocab,
        hidden_size=c.dim,
        intermediate_size=c.mlp,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.max_positions,
        rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=c.tie_embeddings,
        eos_token_id=None,
        bos_token_id=None,
    )
    return shake(Qwen2ForCausalLM(config), scale=scale)


def released_aimv2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Aimv2VisionModel's state under the names of the original weights."""
    out: dict[str, Tensor] = {}
    fused: dict[str, list[Tensor]] = {}
    for name in sorted(state):  # k, out, q, v
        tensor = state[name]
        if ".attention." in name and "out_proj" not in name:
            fused.setdefault(name.split(".attention.")[0], []).append(tensor)
            continue
        if name == "embeddings.position_embedding.weight":
            out["vit.preprocessor.pos_embed"] = tensor[None]
            continue
        if name == "rms_norm.weight":
            out["vit.trunk.post_trunk_norm.weight"] = tensor
            continue
        for theirs, released in AIMV2.items():
            name = name.replace(theirs, released)
        out["vit." + name] = tensor
    for layer, (k, q, v) in fused.items():
        layer = layer.replace("encoder.layers", "trunk.blocks")
        out[f"vit.{layer}.attn.qkv.weight"] = torch.cat([q, k, v])
    return out


def released(model: nn.Module) -> dict[str, Tensor]:
    """The state of one of transformers' modules under released names."""
    state = dict(model.state_dict())
    if isinstance(model, Aimv2VisionModel):
        return released_aimv2(state)
    prefix = "vit." if isinstance(model, SiglipVisionModel) else "llm."
    if isinstance(model, Qwen2ForCausalLM) and model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {prefix + name: tensor for name, tensor in state.items()}


def relative_error(got: Tensor, want: Tensor) -> float:
    """Error as a share of the output's norm, in float64."""
    want = want.double()
    return float((got.double() - want).norm() / want.norm())
