// silu(gate) * up over rows that hold their gates, then their values (Shazeer, arXiv 2002.05202).
//
// Bound by bytes: a row is read once and its half written once. silu stays in fp32 until the
// product is rounded; Hugging Face's Qwen2 rounds it to the dtype first.

#include "swiglu.h"

#include "columns.h"
#include "vec_math.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Elements ahead of the arithmetic that are fetched: the exponentials leave too few loads in
// flight.
constexpr int64_t kAhead = 512;

template <class T>
inline F32 gated(F32 gate, F32 up) {
  return silu<sizeof(T) == sizeof(float)>(gate) * up;
}

template <class T>
void swiglu_rows(const SwigluArgs& args, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* gate = static_cast<const T*>(args.gate_up) + r * args.stride;
    const T* up = gate + args.columns;
    T* out = static_cast<T*>(args.out) + r * args.columns;
    over_pairs(
        args.columns,
        [&](int64_t c) {
          fetch(gate + c + kAhead);
          fetch(up + c + kAhead);
          const Two g = load_two(gate + c), u = load_two(up + c);
          store_two(out + c, {gated<T>(g.a, u.a), gated<T>(g.b, u.b)});
        },
        [&](int64_t c, auto n) {
          store_at(out + c, gated<T>(load_at(gate + c, n), load_at(up + c, n)), n);
        });
  }
}

}  // namespace

void swiglu(const SwigluArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return swiglu_rows<float>(args, begin, end);
    case DType::bf16:
      return swiglu_rows<BF16>(args, begin, end);
    case DType::f16:
      return swiglu_rows<F16>(args, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
