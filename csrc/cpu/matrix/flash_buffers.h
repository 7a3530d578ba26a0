// The memory of flash.h's engines on vectors.
#pragma once

#include "flash_softmax.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// What an engine on vectors keeps: of each slot the packed keys and values; a block's queries, its
// scores and its outputs, in rows of kQueries.
class FlashBuffers {
 public:
  static constexpr int64_t kKeys = 128;  // of a block: 16 KB of scores, half the first-level cache
  static constexpr FlashLayout kScores = {kQueries, kLanes};

  void use(int64_t slot) {
    keys_ = all_keys_ + slot * keys_size_;
    values_ = all_values_ + slot * values_size_;
  }

  float* scores() { return scores_; }
  float* out() { return out_; }
  FlashLayout out_layout() const { return kScores; }

 protected:
  // Sizes of a slot in floats; `depth` rows of queries.
  template <class Arena>
  FlashBuffers(Arena& arena, int64_t slots, int64_t keys_size, int64_t values_size, int64_t depth,
               int64_t head_dim)
      : head_dim_(head_dim), keys_size_(keys_size), values_size_(values_size) {
    all_keys_ = keys_ = arena.template take<float>(slots * keys_size);
    all_values_ = values_ = arena.template take<float>(slots * values_size);
    queries_ = arena.template take<float>((depth + kLanes) * kQueries);
    scores_ = arena.template take<float>(kKeys * kQueries);
    out_ = arena.template take<float>((head_dim + kLanes) * kQueries);
  }

  const int64_t head_dim_;
  float* keys_;  // of the slot in use
  float* values_;
  float* queries_;
  float* scores_;
  float* out_;

 private:
  const int64_t keys_size_;
  const int64_t values_size_;
  float* all_keys_;
  float* all_values_;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
