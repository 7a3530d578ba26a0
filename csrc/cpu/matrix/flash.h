// Attention of blocks of queries over one head's keys without a matrix of all scores
// (FlashAttention, Dao et al., arXiv 2205.14135): the core of the three prefill attention ops.
//
// An op packs a head's keys and values once, then adds its queries, whichever they are and wherever
// their results go: kQueries of them, each with the number of keys it sees, are attended together.
// The products are FlashFloats', FlashDots' or FlashPairs'; what happens in between is
// flash_softmax.h's.
#pragma once

#include "flash_args.h"
#include "flash_dots.h"
#include "flash_floats.h"
#include "flash_pairs.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
struct FlashEngineOf {
  using Type = FlashFloats<T>;
};
#if defined(FLASHVL_LEVEL_amx)
template <>
struct FlashEngineOf<BF16> {
  using Type = FlashPairs;
};
#elif defined(FLASHVL_LEVEL_avx512_bf16)
template <>
struct FlashEngineOf<BF16> {
  using Type = FlashDots;
};
#endif
template <class T>
using FlashEngine = typename FlashEngineOf<T>::Type;

#if !defined(FLASHVL_LEVEL_amx)
struct FlashScope {
  FlashScope() {}
};
#endif

// Hands out parts of a task's memory; without memory it only counts.
class FlashArena {
 public:
  explicit FlashArena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class U>
  U* take(int64_t count) {
    const int64_t from = used_;
    used_ += (count * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
    return memory_ == nullptr ? nullptr : reinterpret_cast<U*>(memory_ + from);
  }

  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// One query: where it lies, how many keys it sees (the first ones, at least one), and where its
// result goes: to `out`, or weighed into the floats of `sum`.
template <class T>
struct FlashQuery {
  const T* row;
  int64_t keys;
  T* out;
  float* sum;
  float weight;
};

template <class T>
class Flash {
 public:
  // slots: the heads whose keys and values it holds at a time.
  Flash(FlashArena& arena, int64_t head_dim, int64_t longest, int64_t slots, float scale)
      : engine_(arena, head_dim, longest, slots),
        head_dim_(head_dim),
        factor_(factor_of(scale)),
        sign_(scale < 0.0f ? -1.0f : 1.0f) {}

  // The slot that pack() fills and queries look into; to be called only between blocks.
  void use(int64_t slot) { engine_.use(slot); }

  void pack(const T* k, int64_t k_stride, const T* v, int64_t v_stride, int64_t keys) {
    engine_.pack(k, k_stride, v, v_stride, keys, 0, keys);
  }

  // kPackKeys keys (at the end fewer) of `keys` from `first` on.
  void pack_some(const T* k, int64_t k_stride, const T* v, int64_t v_stride, int64_t keys,
                 int64_t first) {
    const int64_t last = first + kPackKeys < keys ? first + kPackKeys : keys;
    engine_.pack(k, k_stride, v, v_stride, keys, first, last);
  }

  // The query at `row` will be added a block later.
  void expect(const T* row) const { fetch(row, head_dim_); }

  void add(const FlashQuery<T>& query) {
    if (query.out != nullptr) fetch(query.out, head_dim_);
    queries_[count_++] = query;
    if (count_ == kQueries) flush();
  }

  // Attends the queries added since the last full block. To be called before the next pack().
  void flush() {
    if (count_ == 0) return;
    const T* rows[kQueries];
    int64_t least = queries_[0].keys, most = least;
    for (int i = 0; i < kQueries; ++i) {
      if (i >= count_) queries_[i] = queries_[0];  // its result is not written
      rows[i] = queries_[i].row;
      least = queries_[i].keys < least ? queries_[i].keys : least;
      most = queries_[i].keys > most ? queries_[i].keys : most;
    }
    engine_.pack_queries(rows, sign_);
    start(state_);
    for (int64_t first = 0; first < most; first += Engine::kKeys) {
      const int64_t left = most - first;
      attend_block(first, left < Engine::kKeys ? left : Engine::kKeys, least);
    }
    finish();
    count_ = 0;
  }

 private:
  using Engine = FlashEngine<T>;

  // |scale| in powers of two, and never zero: -inf, a hidden key's score, has to remain one. The
  // smallest normal number takes every other score to zero against 1.
  static float factor_of(float scale) {
    const float factor = __builtin_fabsf(scale) * 1.44269504f;
    return factor > __FLT_MIN__ ? factor : __FLT_MIN__;
  }

  int vectors() const { return (count_ + kLanes - 1) / kLanes; }

  // Keys [first, first + keys); every query sees the first `least` keys of all.
  void attend_block(int64_t first, int64_t keys, int64_t least) {
    const int64_t rows = engine_.score(first, keys, vectors());
    if (least < first + rows) mask(first, rows, least);
    for (int v = 0; v < vectors(); ++v) {
      const float* scores = engine_.scores() + v * Engine::kScores.vector;
      const F32 top = highest(scores, Engine::kScores.row, rows);
      if (raise_top(state_, v, top * splat(factor_)) && first > 0) {
        rescale(state_, v, engine_.out(), engine_.out_layout(), head_dim_);
      }
      const F32 now = load(state_.top + v * kLanes);
      add_to_sum(state_, v, engine_.probabilities(v, rows, splat(factor_), now));
    }
    engine_.weigh(first, rows, vectors(), first > 0);
  }

  void mask(int64_t first, int64_t rows, int64_t least) {
    float limits[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      const int64_t limit = queries_[i].keys - first;
      limits[i] = static_cast<float>(limit < 0 ? 0 : limit < rows ? limit : rows);
    }
    const int64_t begin = least < first ? 0 : least - first;
    mask_scores(engine_.scores(), Engine::kScores, begin, rows, limits);
  }

  // Outputs over sums, turned from columns into rows.
  void finish() {
    const FlashLayout layout = engine_.out_layout();
    F32 block[kLanes];
    for (int v = 0; v < vectors(); ++v) {
      // Where all scores are -inf the sum is zero, and so is the result, as in PyTorch's SDPA.
      const F32 sum = load(state_.sum + v * kLanes);
      const F32 share = select(less(zero(), sum), splat(1.0f) / sum, sum);
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        const float* from = engine_.out() + v * layout.vector + d * layout.row;
        for (int i = 0; i < kLanes; ++i) block[i] = load(from + i * layout.row) * share;
        transpose(block);
        for (int i = 0; i < kLanes && v * kLanes + i < count_; ++i) {
          write(queries_[v * kLanes + i], d, block[i]);
        }
      }
    }
  }

  void write(const FlashQuery<T>& query, int64_t d, F32 values) {
    const int64_t n = head_dim_ - d;
    if (query.sum != nullptr) {
      float* sum = query.sum + d;
      const F32 weight = splat(query.weight);
      return store_up_to(sum, fma(values, weight, load_up_to(sum, n)), n);
    }
    store_up_to(query.out + d, values, n);
  }

  Engine engine_;
  int64_t head_dim_;
  float factor_;
  float sign_;
  int count_ = 0;
  FlashQuery<T> queries_[kQueries];
  FlashState state_;
};

// Working memory of a Flash<T>.
template <class T>
int64_t flash_bytes(int64_t head_dim, int64_t longest, int64_t slots) {
  FlashArena arena(nullptr);
  const Flash<T> counted(arena, head_dim, longest, slots, 1.0f);
  return arena.used();
}

inline int64_t flash_bytes(DType dtype, int64_t head_dim, int64_t longest, int64_t slots) {
  switch (dtype) {
    case DType::f32:
      return flash_bytes<float>(head_dim, longest, slots);
    case DType::bf16:
      return flash_bytes<BF16>(head_dim, longest, slots);
    case DType::f16:
      return flash_bytes<F16>(head_dim, longest, slots);
  }
  return 0;
}

template <class T>
const T* flash_row(const FlashTensor& tensor, int64_t outer, int64_t token, int64_t head) {
  const T* data = static_cast<const T*>(tensor.data);
  return data + outer * tensor.outer + token * tensor.token + head * tensor.head;
}

template <class T>
T* flash_out(const FlashArgs& args, int64_t row, int64_t head) {
  return static_cast<T*>(args.out) + (row * args.heads + head) * args.head_dim;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
