// What the binding hands to the argmax_head kernels: norm, vocabulary projection and the best k.
#pragma once

#include <cstdint>

#include "levels.h"
#include "matrix/weights.h"
#include "types.h"

namespace flashvl::cpu {

struct Candidate {
  float value;    // a logit, rounded to the dtype
  int64_t index;  // its word
};

// Rows of x are taken up to kFewRows at a time. `first` and `count` below name those rows.
struct ArgmaxHeadArgs {
  DType dtype;
  const void* x;
  int64_t x_stride;
  const void* norm_weight;
  float eps;
  Weights w;
  int64_t k;
  int64_t tasks;     // that the panels are divided among
  int64_t capacity;  // candidates a task keeps for a row: k, or all its words
  float* row;        // w.columns values
  void* prepared;    // kFewRows * few_rows_bytes(w)
  Candidate* best;   // [tasks][kFewRows][capacity]
  int64_t* taken;    // [tasks]: of a task's list, while lists are merged
  void* values;      // [rows][k] of the dtype
  int64_t* indices;  // [rows][k]
};

// Normalises and prepares rows.
using ArgmaxHeadPrepare = void(const ArgmaxHeadArgs& args, int64_t first, int count);
FLASHVL_DECLARE_KERNEL(ArgmaxHeadPrepare, argmax_head_prepare)

// Fills best[task] with the best of the task's words, best first, from the prepared rows.
using ArgmaxHeadSearch = void(const ArgmaxHeadArgs& args, int64_t task, int count);
FLASHVL_DECLARE_KERNEL(ArgmaxHeadSearch, argmax_head_search)

// Writes the best k over all tasks to rows of values and indices.
using ArgmaxHeadMerge = void(const ArgmaxHeadArgs& args, int64_t first, int count);
FLASHVL_DECLARE_KERNEL(ArgmaxHeadMerge, argmax_head_merge)

}  // namespace flashvl::cpu
