// What the binding hands to the merge_image_tokens kernels.
#pragma once

#include <cstdint>

#include "levels.h"

namespace flashvl::cpu {

// Strides count bytes between rows of row_bytes contiguous bytes. ids and out are contiguous.
struct MergeImageTokensArgs {
  const int64_t* ids;
  const char* embeds;
  int64_t embeds_stride;
  const char* images;
  int64_t images_stride;
  int64_t image_rows;
  char* out;
  int64_t row_bytes;
};

// Writes rows [begin, end) of out.
using MergeImageTokensRows = void(const MergeImageTokensArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(MergeImageTokensRows, merge_image_tokens)

}  // namespace flashvl::cpu
