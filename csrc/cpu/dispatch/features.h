// The CPU features that the levels build on.
#pragma once

#include <string>
#include <vector>

namespace flashvl::cpu {

// Names, as in /proc/cpuinfo, of the features this CPU has and its operating system keeps the
// registers of. Read once, by CPUID; empty where no level needs any (aarch64).
const std::vector<std::string>& detected_features();

}  // namespace flashvl::cpu
