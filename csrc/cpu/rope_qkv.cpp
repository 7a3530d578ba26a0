// Split a fused projection, rotate queries and keys, write keys and values where they belong: one
// pass (Su et al., arXiv 2104.09864; half-split layout of GPT-NeoX).
//
// Bound by bytes: each row is read once and written once; its cos and sin, half a head of each,
// stay in the first-level cache for all heads of the row. Computed in fp32 and rounded once.

#include "rope_qkv.h"

#include "columns.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T, class Count>
inline void put(T* out, int64_t c, int64_t step, F32 values, Count n) {
  if (step == 1) return store_at(out + c, values, n);
  T lanes[kLanes];
  store(lanes, values);
  int64_t count = kLanes;
  if constexpr (__is_same(Count, int64_t)) count = n;
  for (int64_t i = 0; i < count; ++i) out[(c + i) * step] = lanes[i];
}

// Channel c turns with channel c + half. The same channels of the next row, `next` elements away,
// are fetched meanwhile.
template <class T, class Table>
void rotate(const T* x, int64_t next, const Table* cos, const Table* sin, int64_t half, T* out,
            int64_t step) {
  over_columns(half, [&](int64_t c, auto n) {
    fetch(x + next + c);
    fetch(x + next + half + c);
    const F32 left = load_at(x + c, n), right = load_at(x + half + c, n);
    const F32 cosine = load_at(cos + c, n), sine = load_at(sin + c, n);
    put(out, c, step, fma(left, cosine, zero() - right * sine), n);
    put(out + half * step, c, step, fma(right, cosine, left * sine), n);
  });
}

template <class T>
void copy(const T* x, int64_t channels, T* out, int64_t step) {
  if (step == 1) {
    __builtin_memcpy(out, x, static_cast<uint64_t>(channels) * sizeof(T));
    return;
  }
  for (int64_t c = 0; c < channels; ++c) out[c * step] = x[c];
}

template <class T>
T* place(const RopeTarget& target, int64_t slot, int64_t capacity, int64_t head) {
  return static_cast<T*>(target.data) + slot / capacity * target.batch +
         slot % capacity * target.token + head * target.head;
}

template <class T, class Table>
void rope_rows(const RopeQkvArgs& args, int64_t begin, int64_t end) {
  const int64_t head_dim = 2 * args.half;
  for (int64_t n = begin; n < end; ++n) {
    const int64_t position = args.positions == nullptr ? n : args.positions[n];
    const int64_t slot = args.slots == nullptr ? n : args.slots[n];
    const T* x = static_cast<const T*>(args.qkv) + n * args.qkv_stride;
    const Table* cos = static_cast<const Table*>(args.cos) + position * args.cos_stride;
    const Table* sin = static_cast<const Table*>(args.sin) + position * args.sin_stride;
    T* q = static_cast<T*>(args.q) + n * args.heads * head_dim;
    for (int64_t h = 0; h < args.heads; ++h, x += head_dim, q += head_dim) {
      rotate(x, args.qkv_stride, cos, sin, args.half, q, 1);
    }
    if (slot < 0) continue;
    for (int64_t h = 0; h < args.kv_heads; ++h, x += head_dim) {
      rotate(x, args.qkv_stride, cos, sin, args.half, place<T>(args.k, slot, args.capacity, h),
             args.k.channel);
    }
    for (int64_t h = 0; h < args.kv_heads; ++h, x += head_dim) {
      copy(x, head_dim, place<T>(args.v, slot, args.capacity, h), args.v.channel);
    }
  }
}

template <class T>
void rope_rows(const RopeQkvArgs& args, int64_t begin, int64_t end) {
  if (args.table_dtype == DType::f32) return rope_rows<T, float>(args, begin, end);
  return rope_rows<T, T>(args, begin, end);
}

}  // namespace

void rope_qkv(const RopeQkvArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return rope_rows<float>(args, begin, end);
    case DType::bf16:
      return rope_rows<BF16>(args, begin, end);
    case DType::f16:
      return rope_rows<F16>(args, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
