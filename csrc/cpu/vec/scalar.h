// The vocabulary in plain C++: loops over 8 lanes that compilers turn into SSE2 or NEON.
#pragma once

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kLanes = 8;

struct F32 {
  float lane[kLanes];
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }

inline float widen(uint8_t value) { return static_cast<float>(value); }

inline float widen(BF16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

// The exponent is rebiased from 15 to 127. A subnormal half is m * 2^-24: giving it the exponent of
// 2^-14 adds that much, and one exact subtraction takes it off. No branch, so the loop vectorises.
inline float widen(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & 0x0f800000u;
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t special = magnitude + (224u << 23);
  const uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23));
  uint32_t bits = exponent == 0 ? subnormal : normal;
  bits = exponent == 0x0f800000u ? special : bits;
  return float_of(bits | sign);
}

inline void narrow(float value, float* out) { *out = value; }

inline void narrow(float value, BF16* out) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
}

// Below 2^-14 the half is subnormal: adding 0.5 makes the fp32 adder itself round at 2^-24, the
// half's last place, and leaves the result in the low bits.
inline void narrow(float value, F16* out) {
  const uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  uint32_t bits = magnitude < (113u << 23) ? subnormal : normal;
  bits = magnitude >= (143u << 23) ? 0x7c00u : bits;  // 2^16 and above
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;
  out->bits = static_cast<uint16_t>(bits | sign);
}

inline F32 splat(float value) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = value;
  return out;
}

inline F32 zero() { return splat(0.0f); }

inline F32 operator+(F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
  return a;
}

inline F32 operator*(F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
  return a;
}

inline F32 operator-(F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] -= b.lane[i];
  return a;
}

inline F32 operator/(F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] /= b.lane[i];
  return a;
}

inline F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }

inline F32 reciprocal(F32 d) { return splat(1.0f) / d; }
inline F32 min(F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}

inline F32 max(F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}

inline F32 abs(F32 a) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = __builtin_fabsf(a.lane[i]);
  return a;
}

inline F32 sqrt(F32 a) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = __builtin_sqrtf(a.lane[i]);
  return a;
}

// Adding 1.5 * 2^23 leaves no bits for a fraction; numbers from 2^22 on are left as they are.
inline F32 round(F32 a) {
  constexpr float kShift = 12582912.0f;
  for (int i = 0; i < kLanes; ++i) {
    const float rounded = (a.lane[i] + kShift) - kShift;
    a.lane[i] = __builtin_fabsf(a.lane[i]) < 4194304.0f ? rounded : a.lane[i];
  }
  return a;
}

// In two steps, so that each power is a normal number.
inline F32 scale_by_power(F32 a, F32 n) {
  for (int i = 0; i < kLanes; ++i) {
    const bool number = n.lane[i] == n.lane[i];  // a NaN has no integer; a is NaN too then
    const int whole = number ? static_cast<int>(n.lane[i]) : 0, half = whole >> 1;
    const float first = float_of(static_cast<uint32_t>(half + 127) << 23);
    a.lane[i] = a.lane[i] * first * float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  }
  return a;
}

inline F32 scale_normal(F32 a, F32 n) { return scale_by_power(a, n); }

struct Mask {
  bool lane[kLanes];
};

inline Mask less(F32 a, F32 b) {
  Mask out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] < b.lane[i];
  return out;
}

inline Mask is_nan(F32 a) {
  Mask out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] != a.lane[i];
  return out;
}

inline F32 select(Mask mask, F32 a, F32 b) {
  for (int i = 0; i < kLanes; ++i) b.lane[i] = mask.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}

inline float reduce_add(F32 a) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
  }
  return a.lane[0];
}

inline F32 add_neighbours(F32 a, F32 b) {
  F32 out;
  for (int i = 0; i < kLanes / 2; ++i) {
    out.lane[i] = a.lane[2 * i] + a.lane[2 * i + 1];
    out.lane[kLanes / 2 + i] = b.lane[2 * i] + b.lane[2 * i + 1];
  }
  return out;
}

inline void reduce_add_each(const F32 (&a)[4], float* p) {
  for (int i = 0; i < 4; ++i) p[i] = reduce_add(a[i]);
}

inline float reduce_max(F32 a) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
    }
  }
  return a.lane[0];
}

template <class T>
inline F32 load_some(const T* p, int64_t n) {
  F32 out = zero();
  for (int64_t i = 0; i < n; ++i) out.lane[i] = widen(p[i]);
  return out;
}

template <class T>
inline F32 load(const T* p) {
  return load_some(p, kLanes);
}

template <class T>
inline void store_some(T* p, F32 a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(a.lane[i], p + i);
}

template <class T>
inline void store(T* p, F32 a) {
  store_some(p, a, kLanes);
}

template <class T>
inline void store_both(T* p, F32 a, F32 b) {
  store(p, a);
  store(p + kLanes, b);
}

struct Two {
  F32 a, b;
};

template <class T>
inline Two load_two(const T* p) {
  return {load(p), load(p + kLanes)};
}

template <class T>
inline void store_two(T* p, Two two) {
  store(p, two.a);
  store(p + kLanes, two.b);
}

template <class T>
inline F32 round_to(F32 a) {
  T rounded[kLanes];
  store(rounded, a);
  return load(rounded);
}

template <>
inline F32 round_to<float>(F32 a) {
  return a;
}

template <class T>
inline Two round_to(Two two) {
  return {round_to<T>(two.a), round_to<T>(two.b)};
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
