// The backward pass of rope_qkv: a rotation is undone by that of the opposite angle, and the heads
// of a row are put side by side again. Bound by bytes: gradients are read once and written once.

#include "rope_qkv_backward.h"

#include "columns.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
const T* head_at(const RopeHeads& heads, int64_t n, int64_t h) {
  return static_cast<const T*>(heads.data) + n * heads.row + h * heads.head;
}

template <class T, class Table>
void rotate_back(const T* grad, const Table* cos, const Table* sin, int64_t half, T* out) {
  over_columns(half, [&](int64_t c, auto n) {
    const F32 left = load_at(grad + c, n), right = load_at(grad + half + c, n);
    const F32 cosine = load_at(cos + c, n), sine = load_at(sin + c, n);
    store_at(out + c, fma(left, cosine, right * sine), n);
    store_at(out + half + c, fma(right, cosine, zero() - left * sine), n);
  });
}

template <class T, class Table>
void rope_rows(const RopeQkvBackwardArgs& args, int64_t begin, int64_t end) {
  const int64_t head_dim = 2 * args.half;
  for (int64_t n = begin; n < end; ++n) {
    const int64_t position = args.positions == nullptr ? n : args.positions[n];
    const Table* cos = static_cast<const Table*>(args.cos) + position * args.cos_stride;
    const Table* sin = static_cast<const Table*>(args.sin) + position * args.sin_stride;
    T* out = static_cast<T*>(args.dqkv) + n * (args.heads + 2 * args.kv_heads) * head_dim;
    for (int64_t h = 0; h < args.heads; ++h, out += head_dim) {
      rotate_back(head_at<T>(args.q, n, h), cos, sin, args.half, out);
    }
    for (int64_t h = 0; h < args.kv_heads; ++h, out += head_dim) {
      rotate_back(head_at<T>(args.k, n, h), cos, sin, args.half, out);
    }
    for (int64_t h = 0; h < args.kv_heads; ++h, out += head_dim) {
      __builtin_memcpy(out, head_at<T>(args.v, n, h), static_cast<uint64_t>(head_dim) * sizeof(T));
    }
  }
}

template <class T>
void rope_rows(const RopeQkvBackwardArgs& args, int64_t begin, int64_t end) {
  if (args.table_dtype == DType::f32) return rope_rows<T, float>(args, begin, end);
  return rope_rows<T, T>(args, begin, end);
}

}  // namespace

void rope_qkv_backward(const RopeQkvBackwardArgs& args, int64_t begin, int64_t end) {
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
