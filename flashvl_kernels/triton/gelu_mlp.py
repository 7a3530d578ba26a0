"""The ViT's MLP: LayerNorm and GELU around the first product, the residual after the second.

A launch of `layer_norm`, and two of the kernel of `linear`: with GELU in the epilogue of the first,
the width F is written once and read once between them. One launch for both would compute
the first product again for every tile of the second. Many rows, as of an image, are bound by 4 C F
FLOPs a row.
"""

from __future__ import annotations

from torch import Tensor

from flashvl_kernels.triton import linear, product
from flashvl_kernels.triton.expect import Expect

EXPECT = {
    "layer_norm_kernel": Expect(wide_access=True),
    "product_kernel": Expect(tensor_cores=True),
}


def why_not(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    norm_eps: float,
    w1_data: Tensor,
    w1_scale: Tensor | None,
    w1_format: str,
    w1_columns: int,
    b1: Tensor,
    w2_data: Tensor,
    w2_scale: Tensor | None,
    w2_format: str,
    w2_columns: int,
    b2: Tensor,
    approximate: str,
) -> str | None:
    """The weights lie in rows; the norm's row fits into registers."""
    return (
        product.why_not_operand("w1", (w1_data, w1_scale, w1_format, w1_columns))
        or product.why_not_operand("w2", (w2_data, w2_scale, w2_format, w2_columns))
        or product.why_not_norm(x, norm_weight)
    )


def run(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    norm_eps: float,
    w1_data: Tensor,
    w1_scale: Tensor | None,
    w1_format: str,
    w1_columns: int,
    b1: Tensor,
    w2_data: Tensor,
    w2_scale: Tensor | None,
    w2_format: str,
    w2_columns: int,
    b2: Tensor,
    approximate: str,
) -> Tensor:
    """x + w2 · gelu(w1 · norm(x) + b1) + b2."""
    first, second = (
        (w1_data, w1_scale, w1_format, w1_columns),
        (w2_data, w2_scale, w2_format, w2_columns),
    )
    activation = "gelu" if approximate == "none" else "gelu_tanh"
    norm = (norm_weight, norm_bias, norm_eps)
    wide = linear.project(x, first, b1, activation, norm=norm)
    return linear.project(wide, second, b2, residual=x)
