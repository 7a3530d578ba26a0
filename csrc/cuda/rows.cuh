// Where the rows of a tensor lie: one stride, or two, as in a batch of slices (a dropped CLS
// token).
#pragma once

#include "base.cuh"

namespace flashvl::cuda {

// Strides count elements; the elements of a row are neighbours.
struct Rows {
  int64_t inner;         // rows until the outer stride takes over; all of them with one stride
  int64_t inner_stride;  // between neighbours
  int64_t outer_stride;  // between the first rows of two groups

  __device__ __forceinline__ int64_t offset(int64_t row) const {
    // The division costs 64-bit integer work that most tensors do not need.
    if (row < inner) return row * inner_stride;
    const int64_t group = row / inner;
    return group * outer_stride + (row - group * inner) * inner_stride;
  }
};

}  // namespace flashvl::cuda
