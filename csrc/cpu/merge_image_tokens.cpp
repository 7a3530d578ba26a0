// Image rows written over the embeddings where the ids are image sentinels.
//
// Bound by bytes: each row is copied once, from one place or the other. Which image row comes next
// depends on all sentinels before it; counting those again for each task takes 8 bytes a token,
// next to nothing beside rows of 3 KiB, and leaves the tasks independent.

#include "merge_image_tokens.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// SENTINELS of ops/merge_image_tokens.py: the first token of an image, and its further ones.
constexpr int64_t kFirstOfImage = -200, kRestOfImage = -201;

inline bool is_sentinel(int64_t id) { return id == kFirstOfImage || id == kRestOfImage; }

}  // namespace

void merge_image_tokens(const MergeImageTokensArgs& args, int64_t begin, int64_t end) {
  int64_t next = 0;
  for (int64_t r = 0; r < begin; ++r) next += is_sentinel(args.ids[r]);
  for (int64_t r = begin; r < end; ++r) {
    const char* row = args.embeds + r * args.embeds_stride;
    if (is_sentinel(args.ids[r])) {
      if (next < args.image_rows) row = args.images + next * args.images_stride;
      ++next;
    }
    __builtin_memcpy(args.out + r * args.row_bytes, row, static_cast<uint64_t>(args.row_bytes));
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
