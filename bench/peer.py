"""transformers' SigLIP, AIMv2 and Qwen2 on the very weights of one of our models.

The peers are built without memory of their own: their parameters become views of ours, so both
sides compute with the same numbers and the weights are held once. `widened` runs a peer in float64,
one layer's weights at a time, as the oracle that both sides are judged by.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flashvl import FlashVL
from flashvl.checkpoint import released
from flashvl_bench.remote import RemoteError
from flashvl_bench.timing import Contender
from flashvl_kernels.backends import backend

try:
    import transformers
except ImportError:
    transformers = None  # type: ignore[assignment]

# AIMv2's released names, and those of transformers' port of it.
_AIMV2 = (
    (r"^preprocessor\.patchifier\.proj", "embeddings.patch_embed"),
    (r"^preprocessor\.patchifier\.norm", "embeddings.rms_norm"),
    (r"^preprocessor\.pos_embed$", "embeddings.position_embedding.weight"),
    (r"^trunk\.post_trunk_norm", "rms_norm"),
    (r"^trunk\.blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.norm_(\d)\.", r".rms_norm\1."),
    (r"\.mlp\.fc1\.", ".ffn.gate_proj."),
    (r"\.mlp\.fc3\.", ".ffn.up_proj."),
    (r"\.mlp\.fc2\.", ".ffn.down_proj."),
)


class PeerMissing(RuntimeError):
    """The peer cannot be measured here; the text says what to install."""


def require() -> None:
    """Raise PeerMissing unless transformers can be imported."""
    if transformers is None:
        raise PeerMissing(
            "transformers is not installed, and the model is measured beside it; "
            "install the test extra: pip install 'flashvl-kernels[test]'"
        )


def vision_peer(model: FlashVL) -> nn.Module:
    """SiglipVisionModel or Aimv2VisionModel on the weights of `model`; without a pooling head."""
    require()
    c = model.config.vision
    sizes: dict[str, Any] = {
        "hidden_size": c.dim, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "intermediate_size": c.mlp, "patch_size": c.patch, "image_size": c.tile_px,
    }  # fmt: skip
    views = _views(model, "vit.")
    config: Any
    if c.kind == "siglip2":
        config = transformers.SiglipVisionConfig(
            **sizes, layer_norm_eps=c.eps, hidden_act="gelu_pytorch_tanh", vision_use_head=False
        )
        return _built(transformers.SiglipVisionModel, config, views)
    config = transformers.Aimv2VisionConfig(
        **sizes, rms_norm_eps=c.eps, use_head=False, is_native=False
    )
    return _built(transformers.Aimv2VisionModel, config, _aimv2(views))


def decoder_peer(model: FlashVL) -> nn.Module:
    """Qwen2ForCausalLM on the weights of `model`."""
    require()
    c = model.config.decoder
    config: Any = transformers.Qwen2Config(
        hidden_size=c.dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        intermediate_size=c.mlp,
        vocab_size=c.vocab,
        rms_norm_eps=c.eps,
        max_position_embeddings=c.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=False,  # tied weights are one tensor under two names here
    )
    config.head_dim = c.head_dim  # read by its attention, but no field of its own
    views = _views(model, "llm.")
    views.setdefault("lm_head.weight", views["model.embed_tokens.weight"])
    return _built(transformers.Qwen2ForCausalLM, config, views)


def compiled(name: str, run: Callable[[], Any]) -> Contender | RemoteError:
    """`run` under torch.compile with freezing, called twice; the error where that fails."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    quick = torch.compile(run)
    try:
        quick()
        quick()
    except Exception as error:  # a compiler may raise anything; the row says what
        return RemoteError(f"{type(error).__name__}: {str(error).splitlines()[0]:.200}")
    finally:
        inductor.freezing = False
    return Contender(name, quick)


def pipeline(model: FlashVL) -> Callable[..., Tensor]:
    """transformers from a uint8 image of one tile and text ids to the last logits.

    The image is normalised by two PyTorch expressions: transformers' image processors, which
    resize as well, take longer. The adapter is the plain expression on our weights. exact: in
    float64.
    """
    encoder, language = vision_peer(model), decoder_peer(model)
    policy = model.config.image
    grid = policy.grid(1, 1)
    how = policy.compression_for(grid)
    shape = {"grid": grid} if policy.stitch else {"size": policy.units(grid)}
    mean, std = (torch.tensor(v)[:, None, None] for v in (policy.mean, policy.std))

    def run(image: Tensor, text: Tensor, exact: bool = False) -> Tensor:
        pixels = image.permute(2, 0, 1).to(torch.float64 if exact else torch.float32)
        pixels = ((pixels / 255 - mean) / std)[None]
        adapter = copy.deepcopy(model.adapter).double() if exact else model.adapter
        with ExitStack() as stack:
            stack.enter_context(backend("torch"))
            for side in (encoder, language) if exact else ():
                stack.enter_context(widened(side))
            pixels = pixels if exact else pixels.to(model.dtype)
            features = encoder(pixel_values=pixels).last_hidden_state
            rows = adapter(features, how, **shape).flatten(0, 1)
            words = language.get_input_embeddings()(text).to(rows.dtype)
            embeds = torch.cat((rows, words))[None]
            last: Tensor = language(inputs_embeds=embeds, use_cache=True, logits_to_keep=1).logits
        return last[0, 0]

    return run


def _views(model: FlashVL, prefix: str) -> dict[str, Tensor]:
    """Our parameters under released names, without `prefix`, sharing their memory."""
    parameters = dict(model.named_parameters())
    found = {}
    for piece in released(model.config):
        if piece.key.startswith(prefix):
            rows = parameters[piece.parameter].detach()[piece.first : piece.first + piece.rows]
            found[piece.key.removeprefix(prefix)] = rows.view(piece.shape)
    return found


def _aimv2(views: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, tensor in views.items():
        for pattern, name in _AIMV2:
            key = re.sub(pattern, name, key)
        if ".attn.qkv." in key:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                found[key.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows
        else:
            found[key] = tensor[0] if "position_embedding" in key else tensor
    return found


def _built(kind: Any, config: Any, views: dict[str, Tensor]) -> nn.Module:
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(views, strict=True, assign=True)
    for module in model.modules():
        if isinstance(getattr(module, "position_ids", None), Tensor):
            count = module.position_ids.shape[-1]
            module.register_buffer("position_ids", torch.arange(count)[None], persistent=False)
        if hasattr(module, "rotary_emb"):
            module.rotary_emb = type(module.rotary_emb)(config)
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise PeerMissing(
            f"transformers {transformers.__version__} has tensors this benchmark does not know "
            f"({', '.join(left)}); install the version in the test extra"
        )
    return model.eval().requires_grad_(False)


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes in float64: a layer's weights are widened while it runs.

    RMSNorm, which transformers computes in fp32 whatever the dtype, is computed in float64 too.
    Rotation angles stay fp32, as both sides define them.
    """
    handles: list[Any] = []
    norms: list[nn.Module] = []
    for module in model.modules():
        if not module._parameters:
            continue
        narrow: dict[str, Tensor] = {}
        handles.append(module.register_forward_pre_hook(_widen(narrow)))
        handles.append(module.register_forward_hook(_narrow(narrow)))
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _exact_rms_norm(module)  # type: ignore[method-assign]
            norms.append(module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            del norm.forward


def _widen(narrow: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for name, parameter in module.named_parameters(recurse=False):
            narrow[name] = parameter.data
            parameter.data = parameter.data.double()
        return tuple(
            a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        )

    return hook


def _narrow(narrow: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = narrow.pop(name)

    return hook


def _exact_rms_norm(module: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
        return x * scale * module.weight

    return forward
