// Measures csrc/cpu/vec_math.h against double and checks the words of csrc/cpu/vec.h, at the level
// it is compiled for. Prints "error NAME VALUE AT" and "FAILED NAME"; test_vec_math.py reads it.

#include "vec_math.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

using namespace flashvl::cpu;
using namespace flashvl::cpu::FLASHVL_LEVEL;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kHuge = std::numeric_limits<float>::max();

// An odd number, so that all low bits occur: 8 million numbers for the whole range of fp32.
constexpr uint32_t kStep = 509;

struct Function {
  const char* name;
  F32 (*vector)(F32);
  double (*exact)(double);
  double (*unit)(double x, double exact);  // what the error is counted in
};

// One unit in the last place of the fp32 numbers around `exact`.
double last_place(double, double exact) {
  const double size = std::fabs(exact);
  if (size < 0x1p-126) return 0x1p-149;
  return std::ldexp(1.0, std::ilogb(size) - 23);
}
double itself(double, double exact) { return std::fabs(exact); }
double larger_of_x_and_1(double x, double) { return std::fmax(std::fabs(x), 1.0); }

double exact_sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double exact_silu(double x) { return x / (1.0 + std::exp(-x)); }
double exact_gelu_tanh(double x) {
  return x / (1.0 + std::exp(-2.0 * std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
double exact_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

const Function kFunctions[] = {
    {"exp", exp, std::exp, last_place},
    {"sigmoid", sigmoid, exact_sigmoid, last_place},
    {"silu", silu<true>, exact_silu, last_place},
    {"quick_silu", silu<false>, exact_silu, last_place},
    {"gelu_tanh", gelu_tanh<true>, exact_gelu_tanh, larger_of_x_and_1},
    {"quick_gelu_tanh", gelu_tanh<false>, exact_gelu_tanh, larger_of_x_and_1},
    {"normal_cdf", normal_cdf, exact_cdf, larger_of_x_and_1},
    {"quick_exp", quick_exp, std::exp, itself},
};

float apply(F32 (*f)(F32), float x) {
  float lanes[kLanes];
  store(lanes, f(splat(x)));
  for (int i = 1; i < kLanes; ++i) {
    if (std::memcmp(lanes, lanes + i, sizeof(float)) != 0) std::printf("FAILED lanes differ\n");
  }
  return lanes[0];
}

// The largest error over fp32 numbers from `low` and from -`top` up to `top`, kStep bit patterns
// apart, where the exact result is a normal number.
void measure(const Function& f, float low, float top) {
  uint32_t last;
  std::memcpy(&last, &top, sizeof last);
  double worst = 0.0, at = 0.0;
  for (uint32_t bits = 0; bits < last;) {
    float x[kLanes], got[kLanes];
    for (int i = 0; i < kLanes; ++i, bits += kStep) {
      const uint32_t pattern = (bits < last ? bits : last) | (i % 2 ? 0x80000000u : 0u);
      std::memcpy(x + i, &pattern, sizeof pattern);
    }
    store(got, f.vector(load(x)));
    for (int i = 0; i < kLanes; ++i) {
      const double exact = f.exact(x[i]), size = std::fabs(exact);
      if (x[i] < low || size > kHuge || (f.unit == last_place && size < 0x1p-126)) continue;
      const double error = std::fabs(got[i] - exact) / f.unit(x[i], exact);
      if (!(error <= worst)) worst = error, at = x[i];
    }
  }
  std::printf("error %s %.9g %.9g\n", f.name, worst, at);
}

void expect(const char* name, float got, float wanted) {
  const bool same = std::isnan(wanted) ? std::isnan(got)
                                       : got == wanted && std::signbit(got) == std::signbit(wanted);
  if (!same) std::printf("FAILED %s: %.9g instead of %.9g\n", name, got, wanted);
}

void special_values() {
  for (const Function& f : kFunctions) expect(f.name, apply(f.vector, kNaN), kNaN);
  expect("exp(0)", apply(exp, 0.0f), 1.0f);
  expect("exp(-0)", apply(exp, -0.0f), 1.0f);
  expect("exp(inf)", apply(exp, kInf), kInf);
  expect("exp(-inf)", apply(exp, -kInf), 0.0f);
  expect("exp(huge)", apply(exp, kHuge), kInf);
  expect("exp(-huge)", apply(exp, -kHuge), 0.0f);
  expect("exp(-103) is subnormal", apply(exp, -103.0f), 0x1p-149f);
  expect("sigmoid(inf)", apply(sigmoid, kInf), 1.0f);
  expect("sigmoid(-inf)", apply(sigmoid, -kInf), 0.0f);
  expect("sigmoid(0)", apply(sigmoid, 0.0f), 0.5f);
  expect("silu(inf)", apply(silu<true>, kInf), kInf);
  expect("silu(-inf)", apply(silu<true>, -kInf), kNaN);  // -inf * 0, as in double
  expect("silu(huge)", apply(silu<true>, kHuge), kHuge);
  expect("silu(-huge)", apply(silu<true>, -kHuge), -0.0f);
  for (float x = -88.0f; x > -104.0f; x -= 0.01f) {
    if (std::fabs(apply(silu<true>, x) - exact_silu(x)) > 2.7e-37)
      std::printf("FAILED silu(%g)\n", x);
  }
  expect("silu(-0)", apply(silu<true>, -0.0f), -0.0f);
  expect("quick_silu(inf)", apply(silu<false>, kInf), kInf);
  expect("quick_silu(-inf)", apply(silu<false>, -kInf), kNaN);
  expect("quick_silu(huge)", apply(silu<false>, kHuge), kHuge);
  expect("quick_silu(-huge)", apply(silu<false>, -kHuge), -0.0f);
  expect("quick_exp(88.8)", apply(quick_exp, 88.8f), kInf);
  expect("quick_gelu_tanh(huge)", apply(gelu_tanh<false>, kHuge), kHuge);
  expect("quick_gelu_tanh(-huge)", apply(gelu_tanh<false>, -kHuge), -0.0f);
  expect("gelu_tanh(inf)", apply(gelu_tanh<true>, kInf), kInf);
  expect("gelu_tanh(huge)", apply(gelu_tanh<true>, kHuge), kHuge);
  expect("gelu_tanh(-huge)", apply(gelu_tanh<true>, -kHuge), -0.0f);
  expect("gelu_tanh(0)", apply(gelu_tanh<true>, 0.0f), 0.0f);
  expect("normal_cdf(inf)", apply(normal_cdf, kInf), 1.0f);
  expect("normal_cdf(-inf)", apply(normal_cdf, -kInf), 0.0f);
  expect("normal_cdf(huge)", apply(normal_cdf, kHuge), 1.0f);
  expect("normal_cdf(-huge)", apply(normal_cdf, -kHuge), 0.0f);
  expect("normal_cdf(0)", apply(normal_cdf, 0.0f), 0.5f);
}

float first(F32 a) {
  float lanes[kLanes];
  store(lanes, a);
  return lanes[0];
}

void words() {
  const F32 nan = splat(kNaN), one = splat(1.0f), two = splat(2.0f);
  expect("min(1, 2)", first(min(one, two)), 1.0f);
  expect("max(1, 2)", first(max(one, two)), 2.0f);
  expect("min(NaN, 1)", first(min(nan, one)), 1.0f);
  expect("max(NaN, 1)", first(max(nan, one)), 1.0f);
  expect("min(1, NaN)", first(min(one, nan)), kNaN);
  expect("max(1, NaN)", first(max(one, nan)), kNaN);
  expect("abs(-0)", first(abs(splat(-0.0f))), 0.0f);
  expect("abs(-inf)", first(abs(splat(-kInf))), kInf);
  expect("reciprocal(1)", first(reciprocal(one)), 1.0f);
  expect("reciprocal(inf)", first(reciprocal(splat(kInf))), 0.0f);
  expect("reciprocal(NaN)", first(reciprocal(nan)), kNaN);
  for (float d = 1.0f; d < kHuge / 1.1f; d *= 1.1f) {
    const double exact = 1.0 / d, ulps = std::fabs(first(reciprocal(splat(d))) - exact);
    if (ulps > 1.5 * last_place(0.0, exact)) std::printf("FAILED reciprocal(%g)\n", d);
  }
  const float halves[][2] = {
      {0.5f, 0.0f},     {1.5f, 2.0f},  {2.5f, 2.0f},  {-2.5f, -2.0f},
      {-1.5f, -2.0f},   {0.49f, 0.0f}, {2.51f, 3.0f}, {8388609.0f, 8388609.0f},
      {-kHuge, -kHuge}, {kInf, kInf}};
  for (const auto& pair : halves) expect("round", first(round(splat(pair[0]))), pair[1]);
  for (int n = -252; n <= 254; ++n) {
    const float wanted = std::ldexp(1.0f, n);
    expect("scale_by_power", first(scale_by_power(one, splat(static_cast<float>(n)))), wanted);
  }
  for (int n = -125; n <= 128; ++n) {
    expect("scale_normal", first(scale_normal(one, splat(static_cast<float>(n)))),
           std::ldexp(1.0f, n));
  }
  expect("less(1, 2)", first(select(less(one, two), one, two)), 1.0f);
  expect("less(2, 1)", first(select(less(two, one), one, two)), 2.0f);
  expect("less(NaN, 1)", first(select(less(nan, one), one, two)), 2.0f);
  expect("less(1, NaN)", first(select(less(one, nan), one, two)), 2.0f);
  expect("is_nan(NaN)", first(select(is_nan(nan), one, two)), 1.0f);
  expect("is_nan(1)", first(select(is_nan(one), one, two)), 2.0f);
}

// Every lane takes part, and only the lanes asked for are read and written.
void lanes() {
  float values[kLanes], sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += values[i] = static_cast<float>(i * i - 20);
  expect("reduce_add", reduce_add(load(values)), sum);
  float sums[5] = {0.0f, 0.0f, 0.0f, 0.0f, 7.0f};
  const F32 four[4] = {load(values), splat(1.0f), load(values) * splat(2.0f), splat(-3.0f)};
  reduce_add_each(four, sums);
  const float wanted[5] = {sum, 1.0f * kLanes, 2.0f * sum, -3.0f * kLanes, 7.0f};
  for (int i = 0; i < 5; ++i) expect("reduce_add_each", sums[i], wanted[i]);
  for (int i = 0; i < kLanes; ++i) {
    float top[kLanes];
    for (int j = 0; j < kLanes; ++j) top[j] = j == i ? -1.0f : -2.0f - static_cast<float>(j);
    expect("reduce_max", reduce_max(load(top)), -1.0f);
    float out[kLanes], picked[kLanes], border[kLanes];
    for (int j = 0; j < kLanes; ++j) out[j] = 7.0f, border[j] = j < i ? 1.0f : 3.0f;
    store_some(out, load_some(values, i), i);
    store(picked, select(less(load(border), splat(2.0f)), splat(5.0f), load_some(values, i)));
    for (int j = 0; j < kLanes; ++j) {
      expect("store_some", out[j], j < i ? values[j] : 7.0f);
      expect("select and load_some", picked[j], j < i ? 5.0f : 0.0f);
    }
  }
}

// The nearest bf16, ties to even, one number at a time.
float nearest_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return value;
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Two vectors at once round as one does, whichever of them holds a NaN or a subnormal.
template <class T>
void pairs() {
  const float numbers[] = {1.0f, 1.00390625f, 1.01171875f, 3.3e38f, -0.0f, 1e-30f, kInf, -2.7f};
  for (int odd_one = -1; odd_one < 2 * kLanes; ++odd_one) {
    for (const uint32_t odd : {0x7fc00000u, 0xffffffffu, 0x7fffffffu, 0x000116c2u, 0x807fffffu}) {
      float values[2 * kLanes];
      for (int i = 0; i < 2 * kLanes; ++i) values[i] = numbers[i % 8];
      if (odd_one >= 0) std::memcpy(values + odd_one, &odd, sizeof odd);
      const Two two = {load(values), load(values + kLanes)};
      T out[2 * kLanes], one[kLanes];
      store_two(out, two);
      float found[2 * kLanes], rounded[2 * kLanes], wanted[2 * kLanes];
      const Two back = load_two(out), near = round_to<T>(two);
      store(found, back.a), store(found + kLanes, back.b);
      store(rounded, near.a), store(rounded + kLanes, near.b);
      for (int half = 0; half < 2; ++half) {
        store(one, half ? two.b : two.a);
        store(wanted + half * kLanes, load(one));
      }
      for (int i = 0; i < 2 * kLanes; ++i) {
        if (std::is_same_v<T, BF16>) {
          expect("store of bf16", wanted[i], nearest_bf16(values[i]));
        }
        expect("store_two", found[i], wanted[i]);
        expect("round_to", rounded[i], wanted[i]);
      }
    }
  }
}

}  // namespace

int main() {
  measure(kFunctions[0], -kHuge, 104.0f);
  measure(kFunctions[1], -kHuge, kHuge);
  measure(kFunctions[2], -88.0f, kHuge);  // below, e^-x is infinite in fp32 and silu -0
  measure(kFunctions[3], -88.0f, kHuge);
  for (int i = 4; i < 7; ++i) measure(kFunctions[i], -kHuge, kHuge);
  measure(kFunctions[7], -86.6f, 88.0f);
  special_values();
  words();
  lanes();
  pairs<float>();
  pairs<BF16>();
  pairs<F16>();
}
