// See dispatch.h. CMakeLists.txt defines FLASHVL_COMPILED_LEVELS, e.g. "scalar,avx2,avx512".

#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "features.h"

namespace flashvl::cpu {
namespace {

using Names = std::vector<std::string>;

struct LevelInfo {
  std::string name;
  Names needs;
};

Names with(Names names, const Names& more) {
  names.insert(names.end(), more.begin(), more.end());
  return names;
}

// In the order of FLASHVL_CPU_LEVELS. `needs` lists what the level's compiler flags may emit.
const std::vector<LevelInfo>& levels() {
  static const Names avx2 = {"avx2", "fma", "f16c"};
  static const Names avx512 =
      with(avx2, {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"});
  static const Names avx512_bf16 = with(avx512, {"avx512_bf16"});
#if defined(FLASHVL_EMULATED_TILES)
  static const Names amx = avx512_bf16;  // matrix/tile_emulated.h
#else
  static const Names amx = with(avx512_bf16, {"amx_tile", "amx_bf16", "amx_int8"});
#endif
  static const std::vector<LevelInfo> infos = {{"scalar", {}},
                                               {"avx2", avx2},
                                               {"avx512", avx512},
                                               {"avx512_bf16", avx512_bf16},
                                               {"amx", amx}};
  return infos;
}

std::string joined(const Names& names, const char* separator) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : separator) + name;
  return text;
}

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Names missing_features(const LevelInfo& info) {
  Names missing;
  for (const std::string& need : info.needs) {
    if (!contains(detected_features(), need)) missing.push_back(need);
  }
  return missing;
}

bool is_compiled(const LevelInfo& info) {
  const std::string all = std::string(",") + FLASHVL_COMPILED_LEVELS + ",";
  return all.find("," + info.name + ",") != std::string::npos;
}

bool is_available(const LevelInfo& info) {
  return is_compiled(info) && missing_features(info).empty();
}

Names available_names() {
  Names names;
  for (const LevelInfo& info : levels()) {
    if (is_available(info)) names.push_back(info.name);
  }
  return names;
}

[[noreturn]] void refuse(const std::string& value, const std::string& why) {
  throw std::invalid_argument("FLASHVL_CPU_LEVEL is '" + value + "': " + why +
                              ". Set it to one of " + joined(available_names(), ", ") +
                              ", or unset it.");
}

// What nobody asks for is not emulated.
#if defined(FLASHVL_EMULATED_TILES)
constexpr Level kHighest = kLevels - 2;
#else
constexpr Level kHighest = kLevels - 1;
#endif

// The highest level allowed by FLASHVL_CPU_LEVEL.
Level ceiling() {
  const char* value = std::getenv("FLASHVL_CPU_LEVEL");
  if (value == nullptr || *value == '\0') return kHighest;
  for (Level level = 0; level < kLevels; ++level) {
    const LevelInfo& info = levels()[level];
    if (info.name != value) continue;
    const Names missing = missing_features(info);
    if (!missing.empty()) refuse(value, "this CPU lacks " + joined(missing, ", "));
    return level;
  }
  refuse(value, "no such level");
}

Level choose() {
  Level level = ceiling();
  while (level > 0 && !is_available(levels()[level])) --level;
  return level;
}

}  // namespace

Level active_level() {
  static const Level level = choose();
  return level;
}

std::string active_level_name() { return levels()[active_level()].name; }

std::string available_levels() { return joined(available_names(), ","); }

std::string cpu_features() { return joined(detected_features(), ","); }

}  // namespace flashvl::cpu
