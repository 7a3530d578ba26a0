// The instruction-set levels and how a kernel is declared at each of them.
//
// Every csrc/cpu/<op>.cpp is compiled once per level, inside namespace flashvl::cpu::<level>, as in
// simdjson's generic/ and Highway's foreach_target. A level that a build leaves out, or that an op
// has no use for, leaves a weak null symbol, so nothing else has to know which levels exist.
#pragma once

// Lowest first; dispatch/dispatch.cpp says which CPU features each needs.
#define FLASHVL_CPU_LEVELS(X, ...) \
  X(scalar, __VA_ARGS__)           \
  X(avx2, __VA_ARGS__)             \
  X(avx512, __VA_ARGS__) X(avx512_bf16, __VA_ARGS__) X(amx, __VA_ARGS__)

// What the level being compiled has, whatever it is called.
#if defined(FLASHVL_LEVEL_avx512_bf16) || defined(FLASHVL_LEVEL_amx)
#define FLASHVL_HAS_AVX512_BF16
#endif
#if defined(FLASHVL_LEVEL_avx512) || defined(FLASHVL_HAS_AVX512_BF16)
#define FLASHVL_HAS_AVX512
#endif

#define FLASHVL_DECLARE_KERNEL_AT(level, Signature, name)  \
  namespace level {                                        \
  [[gnu::weak, gnu::visibility("hidden")]] Signature name; \
  }

// Declares flashvl::cpu::<level>::name, a function of type Signature, for every level.
#define FLASHVL_DECLARE_KERNEL(Signature, name) \
  FLASHVL_CPU_LEVELS(FLASHVL_DECLARE_KERNEL_AT, Signature, name)
