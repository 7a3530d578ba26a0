// Pillow's antialiased bicubic filter: its weights, and the pass along each axis.
//
// A cubic with a = -0.5 (Keys, 1981) whose support grows with the reduction; weights in double
// precision, rounded to 22-bit fixed point, and sums of bytes that are exact (vec/pixels.h): every
// result is Pillow's own, bit for bit.
#pragma once

#include "vec/pixels.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// One axis: `out` outputs of `size` inputs; output i adds up groups * kTaps inputs from first[i]
// on, the last ones with weight 0 and perhaps past the end.
struct Filter {
  int64_t size;
  int64_t out;
  int64_t groups;
  int64_t* first;
  uint8_t* factors;  // groups * kGroupBytes an output
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

// As Pillow rounds: to 22 bits after the point, halves away from zero.
inline int32_t fixed_point(double weight) {
  const double scaled = weight * static_cast<double>(1 << kFraction);
  return static_cast<int32_t>(weight < 0.0 ? scaled - 0.5 : scaled + 0.5);
}

// Fills in first and factors. The weights of a window are worked out twice, for they are divided by
// their sum, which Pillow adds up from the first to the last.
inline void build(const Filter& filter) {
  const double shrink = 1.0 / reach_of(filter.size, filter.out);
  const int64_t stride = filter.groups * kGroupBytes;
  __builtin_memset(filter.factors, 0, static_cast<unsigned long>(filter.out * stride));
  for (int64_t i = 0; i < filter.out; ++i) {
    const Window window = window_of(filter.size, filter.out, i);
    const auto weight = [&](int64_t place) {
      return cubic((static_cast<double>(place) - window.centre + 0.5) * shrink);
    };
    double sum = 0.0;
    for (int64_t place = window.first; place < window.stop; ++place) sum += weight(place);
    filter.first[i] = window.first;
    for (int64_t place = window.first; place < window.stop; ++place) {
      const int64_t tap = place - window.first;
      put_factors(filter.factors + i * stride + tap / kTaps * kGroupBytes, tap % kTaps,
                  fixed_point(weight(place) / sum));
    }
  }
}

// One output row of the pass down: rows[t] is the input row of tap t; n bytes.
inline void blend_rows(const uint8_t* const* rows, const Filter& filter, int64_t output, int64_t n,
                       uint8_t* to) {
  const uint8_t* factors = filter.factors + output * filter.groups * kGroupBytes;
  for (int64_t c = 0; c < n; c += kBytes) {
    const int64_t left = n - c;
    Sums sums[4] = {no_sums(), no_sums(), no_sums(), no_sums()};
    for (int64_t g = 0; g < filter.groups; ++g) {
      const uint8_t* const* row = rows + g * kTaps;
      const Factors by = splat_factors(factors + g * kGroupBytes);
      I32 quads[4];
      interleave(load_bytes(row[0] + c, left), load_bytes(row[1] + c, left),
                 load_bytes(row[2] + c, left), load_bytes(row[3] + c, left), quads);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sums[k] = add_taps(sums[k], quads[k], by);
    }
    store_bytes(to + c, {join(sums[0]), join(sums[1]), join(sums[2]), join(sums[3])}, left);
  }
}

// Four rows of the pass across, so that one load of the weights serves four sums. Writes three
// bytes an output to each of to, and one byte past the last.
inline void blend_pixels(const uint8_t* const (&rows)[4], const Filter& filter,
                         uint8_t* const (&to)[4]) {
  const int64_t bytes = 3 * filter.size;
  for (int64_t x = 0; x < filter.out; ++x) {
    const uint8_t* factors = filter.factors + x * filter.groups * kGroupBytes;
    int64_t place = 3 * filter.first[x];
    Sums sums[4] = {no_sums(), no_sums(), no_sums(), no_sums()};
    for (int64_t g = 0; g < filter.groups; g += kParts) {
      const Factors by = spread_factors(factors + g * kGroupBytes);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        sums[k] = add_taps(sums[k], load_pixels(rows[k] + place, bytes - place), by);
      }
      place += 3 * kPixels;
    }
    uint8_t* const at[4] = {to[0] + 3 * x, to[1] + 3 * x, to[2] + 3 * x, to[3] + 3 * x};
    store_pixels({join(sums[0]), join(sums[1]), join(sums[2]), join(sums[3])}, at);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
