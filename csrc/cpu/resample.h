// Pillow's antialiased bicubic filter: its weights, and the pass along each axis.
//
// A cubic with a = -0.5 (Keys, 1981) whose support grows with the reduction; weights in double
// precision, rounded to 22-bit fixed point, and sums of bytes that are exact (vec/pixels.h): every
// result is Pillow's own, bit for bit.
//
// Weights lie in groups of four taps, each split into a high and a low factor of 16 bits, as
// h0 h2 h1 h3 l0 l2 l1 l3: taps 0 and 2 meet even_bytes(), 1 and 3 odd_bytes().
#pragma once

#include "vec/pixels.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kTaps = 4;          // in a group
constexpr int kGroupFactors = 8;  // 16-bit factors in a group

// One axis: `out` outputs of `size` inputs; output i adds up groups * kTaps inputs from first[i]
// on, the last ones with weight 0 and perhaps past the end.
struct Filter {
  int64_t size;
  int64_t out;
  int64_t groups;
  int64_t* first;
  int16_t* factors;
};

// The inputs [first, stop) of an output, and where its middle is.
struct Window {
  int64_t first;
  int64_t stop;
  double centre;
};

inline double reach_of(int64_t size, int64_t out) {
  const double scale = static_cast<double>(size) / static_cast<double>(out);
  return scale < 1.0 ? 1.0 : scale;
}

inline Window window_of(int64_t size, int64_t out, int64_t i) {
  const double scale = static_cast<double>(size) / static_cast<double>(out);
  const double support = 2.0 * reach_of(size, out);
  Window window;
  window.centre = (static_cast<double>(i) + 0.5) * scale;
  const double low = window.centre - support + 0.5;
  window.first = low < 0.0 ? 0 : static_cast<int64_t>(low);
  window.stop = static_cast<int64_t>(window.centre + support + 0.5);
  if (window.stop > size) window.stop = size;
  return window;
}

// Groups that the widest window needs, rounded up to a multiple of `multiple`.
inline int64_t groups_of(int64_t size, int64_t out, int64_t multiple) {
  int64_t most = 0;
  for (int64_t i = 0; i < out; ++i) {
    const Window window = window_of(size, out, i);
    if (window.stop - window.first > most) most = window.stop - window.first;
  }
  const int64_t taps = kTaps * multiple;
  return (most + taps - 1) / taps * multiple;
}

inline double cubic(double distance) {
  const double d = distance < 0.0 ? -distance : distance;
  if (d < 1.0) return ((-0.5 + 2.0) * d - (-0.5 + 3.0)) * d * d + 1.0;
  if (d < 2.0) return (((d - 5.0) * d + 8.0) * d - 4.0) * -0.5;
  return 0.0;
}

inline void put_factor(int16_t* factors, int64_t tap, double weight) {
  const double scaled = weight * static_cast<double>(1 << kFraction);
  const int32_t fixed = static_cast<int32_t>(weight < 0.0 ? scaled - 0.5 : scaled + 0.5);
  int16_t* group = factors + tap / kTaps * kGroupFactors;
  const int64_t place = tap % 2 * 2 + tap % kTaps / 2;
  group[place] = static_cast<int16_t>(fixed >> kSplit);
  group[place + kTaps] = static_cast<int16_t>(fixed & ((1 << kSplit) - 1));
}

// Fills in first and factors. The weights of a window are worked out twice, for they are divided by
// their sum, which Pillow adds up from the first to the last.
inline void build(const Filter& filter) {
  const double shrink = 1.0 / reach_of(filter.size, filter.out);
  const int64_t stride = filter.groups * kGroupFactors;
  __builtin_memset(filter.factors, 0, static_cast<unsigned long>(filter.out * stride) * 2);
  for (int64_t i = 0; i < filter.out; ++i) {
    const Window window = window_of(filter.size, filter.out, i);
    const auto weight = [&](int64_t place) {
      return cubic((static_cast<double>(place) - window.centre + 0.5) * shrink);
    };
    double sum = 0.0;
    for (int64_t place = window.first; place < window.stop; ++place) sum += weight(place);
    filter.first[i] = window.first;
    for (int64_t place = window.first; place < window.stop; ++place) {
      put_factor(filter.factors + i * stride, place - window.first, weight(place) / sum);
    }
  }
}

// One output row of the pass down: rows[t] is the input row of tap t; n bytes.
inline void blend_rows(const uint8_t* const* rows, const Filter& filter, int64_t output, int64_t n,
                       uint8_t* to) {
  const int16_t* factors = filter.factors + output * filter.groups * kGroupFactors;
  for (int64_t c = 0; c < n; c += kBytes) {
    const int64_t left = n - c;
    I32 high[4] = {no_sum(), no_sum(), no_sum(), no_sum()};
    I32 low[4] = {no_sum(), no_sum(), no_sum(), no_sum()};
    for (int64_t g = 0; g < filter.groups; ++g) {
      const uint8_t* const* row = rows + g * kTaps;
      const int16_t* pair = factors + g * kGroupFactors;
      I32 quads[4];
      interleave(load_bytes(row[0] + c, left), load_bytes(row[1] + c, left),
                 load_bytes(row[2] + c, left), load_bytes(row[3] + c, left), quads);
      const I32 high_even = splat_pair(pair), high_odd = splat_pair(pair + 2);
      const I32 low_even = splat_pair(pair + 4), low_odd = splat_pair(pair + 6);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const I32 even = even_bytes(quads[k]), odd = odd_bytes(quads[k]);
        high[k] = dot2(dot2(high[k], even, high_even), odd, high_odd);
        low[k] = dot2(dot2(low[k], even, low_even), odd, low_odd);
      }
    }
    for (int k = 0; k < 4; ++k) low[k] = join(high[k], low[k]);
    store_bytes(to + c, low, left);
  }
}

// Four rows of the pass across, so that one load of the weights serves four sums. Writes three
// bytes an output to each of to, and one byte past the last.
inline void blend_pixels(const uint8_t* const (&rows)[4], const Filter& filter,
                         uint8_t* const (&to)[4]) {
  const int64_t bytes = 3 * filter.size;
  for (int64_t x = 0; x < filter.out; ++x) {
    const int16_t* factors = filter.factors + x * filter.groups * kGroupFactors;
    int64_t place = 3 * filter.first[x];
    I32 high[4] = {no_sum(), no_sum(), no_sum(), no_sum()};
    I32 low[4] = {no_sum(), no_sum(), no_sum(), no_sum()};
    for (int64_t g = 0; g < filter.groups; g += kParts) {
      const I32 pairs = load_pairs(factors + g * kGroupFactors);
      const I32 high_even = spread<0>(pairs), high_odd = spread<1>(pairs);
      const I32 low_even = spread<2>(pairs), low_odd = spread<3>(pairs);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const I32 pixels = load_pixels(rows[k] + place, bytes - place);
        const I32 even = even_bytes(pixels), odd = odd_bytes(pixels);
        high[k] = dot2(dot2(high[k], even, high_even), odd, high_odd);
        low[k] = dot2(dot2(low[k], even, low_even), odd, low_odd);
      }
      place += 3 * kPixels;
    }
    for (int k = 0; k < 4; ++k) low[k] = join(high[k], low[k]);
    uint8_t* const at[4] = {to[0] + 3 * x, to[1] + 3 * x, to[2] + 3 * x, to[3] + 3 * x};
    store_pixels(low, at);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
