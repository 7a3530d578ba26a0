// CPUID and XGETBV, each feature on its own bit: one feature must never stand for another (an AMX
// test that also gated AVX-512 made one library 30 times slower where AMX was missing).
// Bit positions: Intel SDM volume 2A, CPUID, leaves 1 and 7; volume 1, section 13.3 for XCR0.

#include "features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace flashvl::cpu {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// The register states that the operating system saves; zero where it uses no XSAVE.
uint64_t saved_states(const Registers& leaf1) {
  constexpr uint32_t kOsxsave = 1u << 27;
  if ((leaf1.ecx & kOsxsave) == 0) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux keeps the AMX tiles off until a process asks for them, once and for all its threads:
// arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA), Documentation/arch/x86/xstate.rst.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<std::string> detect() {
  const Registers leaf1 = cpuid(1, 0);
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = cpuid(7, 1);
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  const struct {
    const char* name;
    uint32_t word;
    int bit;
    uint64_t states;
  } kFeatures[] = {
      {"avx2", leaf7.ebx, 5, kYmm},          {"fma", leaf1.ecx, 12, kYmm},
      {"f16c", leaf1.ecx, 29, kYmm},         {"avx512f", leaf7.ebx, 16, kZmm},
      {"avx512dq", leaf7.ebx, 17, kZmm},     {"avx512bw", leaf7.ebx, 30, kZmm},
      {"avx512vl", leaf7.ebx, 31, kZmm},     {"avx512_vnni", leaf7.ecx, 11, kZmm},
      {"avx512_bf16", leaf7_1.eax, 5, kZmm}, {"amx_bf16", leaf7.edx, 22, kTiles},
      {"amx_tile", leaf7.edx, 24, kTiles},   {"amx_int8", leaf7.edx, 25, kTiles},
  };
  const uint64_t saved = saved_states(leaf1);
  std::vector<std::string> names;
  for (const auto& feature : kFeatures) {
    const bool present = ((feature.word >> feature.bit) & 1u) != 0;
    if (!present || (saved & feature.states) != feature.states) continue;
    if (feature.states == kTiles && !tiles_permitted()) continue;
    names.emplace_back(feature.name);
  }
  return names;
}

#else

std::vector<std::string> detect() { return {}; }

#endif

}  // namespace

const std::vector<std::string>& detected_features() {
  static const std::vector<std::string> features = detect();
  return features;
}

}  // namespace flashvl::cpu
