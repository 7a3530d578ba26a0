// The vision encoder's MLP: norm, first product with bias and GELU, second product with bias and
// residual (Dosovitskiy et al., arXiv 2010.11929; Hendrycks and Gimpel, arXiv 1606.08415).
//
// Both products are those of linear, so are their kernels. Bound by 4 C F FLOPs a row: the ViT has
// 1024 of them, and the F wide rows between the products stay in the L2 cache.
#pragma once

#include "linear.cuh"
