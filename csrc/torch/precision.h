// Whether fp32 products may be rounded to bf16 before they are multiplied: PyTorch's setting, as
// flashvl_kernels/precision.py last told it.
#pragma once

namespace flashvl {

bool products_in_bf16();

}  // namespace flashvl
