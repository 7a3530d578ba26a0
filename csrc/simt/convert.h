// Host models of ptx/convert.cuh.
#pragma once

#include <bit>

#include "device.h"

namespace flashvl::cuda {

inline float float_from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t bf16_from_float(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float float_from_f16(uint16_t bits) {
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

// nearbyint rounds to nearest even, in units of the result's last place; both steps are exact.
inline uint16_t f16_from_float(float value) {
  if (value != value) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size == 0.0f) return sign;
  int exponent = 0;
  std::frexp(size, &exponent);
  const int last_place = exponent - 11 < -24 ? -24 : exponent - 11;
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, -last_place)));
  // 2048 units carry into the exponent by themselves; below 1024 the number is subnormal.
  const int biased = last_place == -24 ? units : ((last_place + 24) << 10) + units;
  return sign | static_cast<uint16_t>(biased);
}

inline uint32_t bf16_pair(float low, float high) {
  return bf16_from_float(low) | static_cast<uint32_t>(bf16_from_float(high)) << 16;
}

inline uint32_t f16_pair(float low, float high) {
  return f16_from_float(low) | static_cast<uint32_t>(f16_from_float(high)) << 16;
}

}  // namespace flashvl::cuda
