"""Kernels for vision-language models: fused token compression, stitched tiles, decoder MLPs.

Every op is a function on tensors, registered with PyTorch under `flashvl::`; `set_backend`,
`backend` and `explain` say which kernel runs it, `watch_backward` how gradients came back.
"""

from __future__ import annotations

from flashvl_kernels.backends import BackendError, Explanation, backend, explain, set_backend
from flashvl_kernels.cache import KVCache
from flashvl_kernels.compression import Compression
from flashvl_kernels.gradients.watched import watch_backward
from flashvl_kernels.norm import Norm
from flashvl_kernels.ops.argmax_head import argmax_head
from flashvl_kernels.ops.causal_attention import causal_attention
from flashvl_kernels.ops.compress_tokens import compress_tokens
from flashvl_kernels.ops.decode_attention import decode_attention
from flashvl_kernels.ops.gelu_mlp import gelu_mlp
from flashvl_kernels.ops.image_to_patches import image_to_patches
from flashvl_kernels.ops.layer_norm import layer_norm
from flashvl_kernels.ops.linear import linear
from flashvl_kernels.ops.merge_image_tokens import merge_image_tokens
from flashvl_kernels.ops.rms_norm import rms_norm
from flashvl_kernels.ops.rope_qkv import rope_qkv
from flashvl_kernels.ops.stitch_tiles import stitch_tiles
from flashvl_kernels.ops.stitched_tile_attention import stitched_tile_attention
from flashvl_kernels.ops.swiglu import swiglu
from flashvl_kernels.ops.swiglu_mlp import swiglu_mlp
from flashvl_kernels.ops.tile_attention import tile_attention
from flashvl_kernels.packing import PackedWeight, pack
from flashvl_kernels.tiles import TileGrid

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Compression",
    "Explanation",
    "KVCache",
    "Norm",
    "PackedWeight",
    "TileGrid",
    "argmax_head",
    "backend",
    "causal_attention",
    "compress_tokens",
    "decode_attention",
    "explain",
    "gelu_mlp",
    "image_to_patches",
    "layer_norm",
    "linear",
    "merge_image_tokens",
    "pack",
    "rms_norm",
    "rope_qkv",
    "set_backend",
    "stitch_tiles",
    "stitched_tile_attention",
    "swiglu",
    "swiglu_mlp",
    "tile_attention",
    "watch_backward",
]
