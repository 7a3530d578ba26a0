// A matrix product with a norm before it and bias, activation and residual after it.
//
// 1 to 8 rows of 16 bits: product_few.cuh, bound by the bytes of w. More: product_mma.cuh, bound by
// FLOPs, after product_norm.cuh where there is a norm. fp32: product_fma.cuh.
#pragma once

#include "product_few.cuh"
#include "product_fma.cuh"
#include "product_mma.cuh"
#include "product_norm.cuh"
