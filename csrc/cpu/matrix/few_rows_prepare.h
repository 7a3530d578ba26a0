// A row of activations in the form that the dot products of few_rows.h want.
//
// Against integer weights each group of 128 columns is quantised to 15 bits: x ~ q * s with
// s = amax / 16319, so |x - q s| <= amax / 32638. Against the plain expression in fp16, which
// rounds every weight by up to 2^-11 of itself, that is little whatever the row looks like. With
// weights of size w, the worst group is one large value among zeros: there the plain expression
// errs by about w amax 2^-12.8 (a uniform error of at most 2^-11, root mean square 1 / sqrt 3 of
// it), and quantising the other 127 columns errs by at most w amax 2^-16 sqrt(128 / 3) = w amax
// 2^-13.3. In an even group it is 2^-3 of that, and in bf16 everything plain is 8 times larger. A
// scale for the whole row would not do: outliers of language models exceed the median a
// thousandfold.
//
// fp32 activations, rows with NaN or Inf, and rows with a group so small that its scale would leave
// the normal numbers stay fp32 and multiply weights widened to fp32.
#pragma once

#include "dot.h"
#include "few_rows_size.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr float kLargest = 16319.0f;       // 128 * 127 + 63: both parts of dot_avx512.h fit 8 bits
constexpr float kSmallestPeak = 0x1p-60f;  // of a group that is not all zeros

template <class T>
inline void copy_padded(const float* x, int64_t columns, int64_t padded, T* out) {
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) store(out + c, load(x + c));
  if (c < columns) {
    store_some(out + c, load_some(x + c, columns - c), columns - c);
    c = columns;
  }
  for (; c < padded; ++c) out[c] = T{};
}

// The largest magnitude of a group, or -1 where the group cannot be quantised.
inline float peak_of(const float* group) {
  F32 peak = zero(), spoiled = zero();
  for (int c = 0; c < kGroup; c += kLanes) {
    const F32 x = load(group + c);
    peak = max(abs(x), peak);
    spoiled = fma(x, zero(), spoiled);  // NaN from NaN and Inf
  }
  if (reduce_add(spoiled) != 0.0f) return -1.0f;
  const float largest = reduce_max(peak);
  return largest != 0.0f && largest < kSmallestPeak ? -1.0f : largest;
}

// The columns in the order that row-layout int4 bytes hold them: even ones in the low nibbles.
template <class T>
inline void even_first(const T* in, T* out) {
  for (int i = 0; i < kGroup / 2; ++i) {
    out[i] = in[2 * i];
    out[kGroup / 2 + i] = in[2 * i + 1];
  }
}

// Writes one group's values, 256 bytes; the scale and the sum of the integers.
inline void quantise_group(const Weights& w, const float* group, float peak, uint8_t* values,
                           float* scale, int32_t* sum) {
  float whole[kGroup];
  int16_t q[kGroup], ordered[kGroup];
  const F32 steps = splat(peak == 0.0f ? 0.0f : kLargest / peak);
  for (int c = 0; c < kGroup; c += kLanes) store(whole + c, round(load(group + c) * steps));
  int32_t total = 0;
  for (int c = 0; c < kGroup; ++c) {
    q[c] = static_cast<int16_t>(static_cast<int32_t>(whole[c]));
    total += q[c];
  }
  *scale = peak / kLargest;
  *sum = total;
  if (w.panels) {
    encode_panel(q, values);
    encode_panel(q + kGroup / 2, values + kGroup);
    return;
  }
  const bool nibbles = w.format == WeightFormat::int4;
  if (nibbles) even_first(q, ordered);
  encode_row(nibbles ? ordered : q, values);
  encode_row((nibbles ? ordered : q) + kGroup / 2, values + kGroup);
}

// False where a group cannot be quantised.
inline bool quantise_row(const Weights& w, const float* x, char* prepared) {
  const PreparedRow parts = prepared_row(w);
  float* scales = reinterpret_cast<float*>(prepared + parts.scales);
  int32_t* offsets = reinterpret_cast<int32_t*>(prepared + parts.offsets);
  uint8_t* values = reinterpret_cast<uint8_t*>(prepared + parts.values);
  // Weights are stored with this much added: what that adds to a sum is taken off at its start.
  const int32_t added = w.format == WeightFormat::int8 ? 128 : 8;
  for (int64_t first = 0, g = 0; first < w.columns; first += kGroup, ++g) {
    float last[kGroup];
    const float* group = x + first;
    if (w.columns - first < kGroup) {
      copy_padded(group, w.columns - first, kGroup, last);
      group = last;
    }
    const float peak = peak_of(group);
    if (peak < 0.0f) return false;
    quantise_group(w, group, peak, values + 2 * first, scales + g, offsets + g);
    offsets[g] *= -added;
  }
  return true;
}

inline void widen_row(const Weights& w, const float* x, char* prepared) {
  float* values = reinterpret_cast<float*>(prepared + prepared_row(w).values);
  const bool nibbles = w.format == WeightFormat::int4 && !w.panels;
  for (int64_t first = 0; first < w.columns; first += kGroup) {
    const int64_t n = w.columns - first < kGroup ? w.columns - first : kGroup;
    float group[kGroup];
    copy_padded(x + first, n, kGroup, nibbles ? group : values + first);
    if (nibbles) even_first(group, values + first);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
