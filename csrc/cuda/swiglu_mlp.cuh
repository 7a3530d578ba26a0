// The decoder's MLP: RMSNorm, gate and up product with SwiGLU, down product with the residual
// (Shazeer, arXiv 2002.05202).
//
// Two launches for 1 to 8 rows of 16 bits, the fewest without a barrier across the device: every
// unit of the down product needs every gated one. The norm is computed by each block while its
// first weights are on their way, silu(gate) * up leaves a tile that holds both, and the sum over
// the gated units starts where their product ended. Bound by the bytes of the three matrices. Many
// rows: the norm is a launch of its own, bound by 6 C F FLOPs a row.
#pragma once

#include "linear.cuh"
