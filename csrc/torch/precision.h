// Whether fp32 products may round their numbers to bf16: PyTorch's setting, as
// flashvl_kernels/precision.py last told it. A level without such products does not.
#pragma once

namespace flashvl {

bool products_in_bf16();

}  // namespace flashvl
