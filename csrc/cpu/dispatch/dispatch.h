// Which level's kernels run: what the CPU has, capped by FLASHVL_CPU_LEVEL.
// Compiled once, without any level's flags.
#pragma once

#include <string>

#include "../levels.h"

namespace flashvl::cpu {

// The position of a level in FLASHVL_CPU_LEVELS: a higher one needs more of the CPU.
using Level = int;

#define FLASHVL_COUNT_LEVEL(level, ...) +1
inline constexpr int kLevels = 0 FLASHVL_CPU_LEVELS(FLASHVL_COUNT_LEVEL);
#undef FLASHVL_COUNT_LEVEL

// The level in force. Throws std::invalid_argument when FLASHVL_CPU_LEVEL names no level, or one
// that this CPU cannot run.
Level active_level();
std::string active_level_name();

// Levels that were compiled in and that this CPU runs, lowest first, separated by commas.
std::string available_levels();

// The CPU features that levels ask for and this CPU (and its operating system) has, by commas.
std::string cpu_features();

// The kernel of the highest level that is in force and has one.
template <class Signature>
Signature* select(Signature* const (&kernels)[kLevels]) {
  Level level = active_level();
  while (level > 0 && kernels[level] == nullptr) --level;
  return kernels[level];
}

#define FLASHVL_KERNEL_AT(level, name) ::flashvl::cpu::level::name,

// FLASHVL_SELECT(RmsNormRows, rms_norm): the function to call.
#define FLASHVL_SELECT(Signature, name) \
  ::flashvl::cpu::select<Signature>({FLASHVL_CPU_LEVELS(FLASHVL_KERNEL_AT, name)})

}  // namespace flashvl::cpu
