// dot.h in plain C++: the products one by one, activations as 16-bit integers in their own order.
#pragma once

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr int kPanelsAtOnce = 1;
constexpr int kFloatSums = 1, kByteSums = 1, kNibbleSums = 1;

template <class T>
struct PanelStep {
  using X = float;
  F32 even[kParts], odd[kParts];
  void load(const T* p) {
    for (int c = 0; c < kPanel; ++c) {
      even[c / kLanes].lane[c % kLanes] = widen(p[2 * c]);
      odd[c / kLanes].lane[c % kLanes] = widen(p[2 * c + 1]);
    }
  }
  void add(F32 (&sums)[kParts], const float* x) const {
    for (int p = 0; p < kParts; ++p) {
      sums[p] = fma(odd[p], splat(x[1]), fma(even[p], splat(x[0]), sums[p]));
    }
  }
};

template <class T>
struct RowStep : WideRowStep<T> {};

struct Bytes {
  uint8_t lane[kStepBytes];
};

inline Bytes load_bytes(const uint8_t* p, int64_t n) {
  Bytes out = {};
  for (int64_t i = 0; i < n; ++i) out.lane[i] = p[i];
  return out;
}
inline Bytes load_bytes(const uint8_t* p) { return load_bytes(p, kStepBytes); }
inline Bytes flip_top(Bytes b) {
  for (uint8_t& lane : b.lane) lane ^= 0x80;
  return b;
}
inline Bytes low_nibbles(Bytes b) {
  for (uint8_t& lane : b.lane) lane &= 15;
  return b;
}
inline Bytes high_nibbles(Bytes b) {
  for (uint8_t& lane : b.lane) lane >>= 4;
  return b;
}

struct Sums {
  int32_t lane[kPanel];
};

inline Sums start_row(int32_t value) { return {{value}}; }
inline Sums start(int32_t value) {
  Sums out;
  for (int32_t& lane : out.lane) lane = value;
  return out;
}

inline Sums operator+(Sums a, const Sums& b) {
  for (int c = 0; c < kPanel; ++c) a.lane[c] += b.lane[c];
  return a;
}

inline int64_t four_at(int64_t i) { return 8 * i; }

inline void add_panel(Sums& sums, const Bytes& w, const uint8_t* x) {
  const int16_t* values = reinterpret_cast<const int16_t*>(x);
  for (int c = 0; c < kPanel; ++c) {
    for (int i = 0; i < 4; ++i) sums.lane[c] += w.lane[4 * c + i] * values[i];
  }
}

inline void add_row(Sums& sums, const Bytes& w, const uint8_t* x) {
  const int16_t* values = reinterpret_cast<const int16_t*>(x);
  for (int i = 0; i < kStepBytes; ++i) sums.lane[i / 4] += w.lane[i] * values[i];
}

inline void finish(const Sums& sums, F32 (&out)[kParts]) {
  for (int c = 0; c < kPanel; ++c) {
    out[c / kLanes].lane[c % kLanes] = static_cast<float>(sums.lane[c]);
  }
}

inline void encode_row(const int16_t* q, uint8_t* x) { __builtin_memcpy(x, q, 2 * kStepBytes); }
inline void encode_panel(const int16_t* q, uint8_t* x) { __builtin_memcpy(x, q, 2 * kStepBytes); }

template <int shift, int mask>
inline F32 byte_field(const uint8_t* p) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) {
    out.lane[i] = static_cast<float>((p[4 * i + shift / 8] >> (shift % 8)) & mask);
  }
  return out;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
