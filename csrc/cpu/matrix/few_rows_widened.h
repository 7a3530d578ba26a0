// Rows that stay fp32 times int8 or int4 weights, widened as they are read: fp32 activations, and
// rows that cannot be quantised (few_rows_prepare.h). One row at a time. A weight is q * scale,
// rounded, before it multiplies, as in the plain expression: 127 * (1 / 127) is 1 then.
#pragma once

#include "dot.h"
#include "few_rows_blocks.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Four columns of a panel, 8 bits or 4 bits each, to a sum for each; `step` holds them in its
// bytes.
template <int shift, int mask>
inline void add_bytes(const uint8_t* step, const float* x, const float* scales, F32 added,
                      F32 (&sums)[4][kParts]) {
  for (int p = 0; p < kParts; ++p) {
    const uint8_t* bytes = step + p * 4 * kLanes;
    const F32 scale = load(scales + p * kLanes);
    const F32 w0 = (byte_field<shift, mask>(bytes) - added) * scale;
    const F32 w1 = (byte_field<shift + 8, mask>(bytes) - added) * scale;
    const F32 w2 = (byte_field<shift + 16, mask>(bytes) - added) * scale;
    const F32 w3 = (byte_field<shift + 24, mask>(bytes) - added) * scale;
    sums[0][p] = fma(w0, splat(x[0]), sums[0][p]);
    sums[1][p] = fma(w1, splat(x[1]), sums[1][p]);
    sums[2][p] = fma(w2, splat(x[2]), sums[2][p]);
    sums[3][p] = fma(w3, splat(x[3]), sums[3][p]);
  }
}

inline void widened_panel(const Weights& w, int64_t panel, const float* x, float* out) {
  const bool nibbles = w.format == WeightFormat::int4;
  const int64_t groups = (w.columns + kGroup - 1) / kGroup;
  const uint8_t* step = static_cast<const uint8_t*>(w.data) + panel * kPanel * w.row_stride;
  const float* scales = w.scale + panel * kPanel * (nibbles ? groups : 1);
  const int64_t padded = nibbles ? 2 * w.row_stride : w.row_stride;
  F32 totals[kParts];
  clear(totals);
  for (int64_t first = 0; first < padded; first += kGroup) {
    const int64_t end = padded - first < kGroup ? padded : first + kGroup;
    F32 sums[4][kParts];
    for (auto& sum : sums) clear(sum);
    for (int64_t k = first; k < end; k += nibbles ? 8 : 4, step += kStepBytes) {
      prefetch<kAhead>(step);
      if (nibbles) {
        add_bytes<0, 15>(step, x + k, scales, splat(8.0f), sums);
        add_bytes<4, 15>(step, x + k + 4, scales, splat(8.0f), sums);
      } else {
        add_bytes<0, 255>(step, x + k, scales, splat(128.0f), sums);
      }
    }
    if (nibbles) scales += kPanel;
    for (int p = 0; p < kParts; ++p) {
      totals[p] = totals[p] + ((sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]));
    }
  }
  for (int p = 0; p < kParts; ++p) store(out + p * kLanes, totals[p]);
}

// n columns of an int8 row.
inline F32 widened_bytes(const uint8_t* row, const float* x, int64_t n, F32 scale) {
  F32 sum = zero();
  for (int64_t c = 0; c < n; c += kLanes) {
    const F32 v = n - c < kLanes ? load_some(row + c, n - c) : load(row + c);
    const F32 q = select(less(splat(127.5f), v), v - splat(256.0f), v);
    sum = fma(q * scale, load(x + c), sum);
  }
  return sum;
}

// n columns of an int4 row; x has the even ones of the group first.
inline F32 widened_nibbles(const uint8_t* row, const float* x, int64_t n, F32 scale) {
  const int64_t bytes = (n + 1) / 2;
  F32 sum = zero();
  for (int64_t c = 0; c < bytes; c += kLanes) {
    const F32 v = bytes - c < kLanes ? load_some(row + c, bytes - c) : load(row + c);
    // v = 16 h + l with 0 <= l < 16: v / 16 - 15 / 32 lies within 15 / 32 of h.
    const F32 high = round(fma(v, splat(0.0625f), splat(-0.46875f)));
    const F32 low = fma(high, splat(-16.0f), v);
    sum = fma((low - splat(8.0f)) * scale, load(x + c), sum);
    sum = fma((high - splat(8.0f)) * scale, load(x + kGroup / 2 + c), sum);
  }
  return sum;
}

inline float widened_row(const Weights& w, int64_t row, const float* x) {
  const bool nibbles = w.format == WeightFormat::int4;
  const int64_t groups = (w.columns + kGroup - 1) / kGroup;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + row * w.row_stride;
  const float* scale = w.scale + row * (nibbles ? groups : 1);
  F32 total = zero();
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t left = w.columns - g * kGroup, n = left < kGroup ? left : kGroup;
    const F32 scales = splat(scale[nibbles ? g : 0]);
    total = total + (nibbles ? widened_nibbles(data + g * kGroup / 2, x + g * kGroup, n, scales)
                             : widened_bytes(data + g * kGroup, x + g * kGroup, n, scales));
  }
  return reduce_add(total);
}

inline void widened_dot(const Weights& w, int64_t panel, const char* prepared, float* out) {
  const float* x = reinterpret_cast<const float*>(prepared + prepared_row(w).values);
  if (w.panels) return widened_panel(w, panel, x, out);
  const int64_t count = rows_of(w, panel);
  for (int64_t n = 0; n < count; ++n) out[n] = widened_row(w, panel * kPanel + n, x);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
