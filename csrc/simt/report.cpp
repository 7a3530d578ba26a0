// Findings and source positions.

#include "report.h"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <tuple>

#include "block.h"

namespace flashvl::simt {
namespace {

constexpr size_t kMostFindings = 64;  // distinct ones: a broken kernel has one at every line

std::vector<Site>& sites() {
  static std::vector<Site> all;
  return all;
}

}  // namespace

Report* report = nullptr;

uint16_t site_index(const Site& site) {
  // The file's name is a literal: its address names it.
  using Key = std::tuple<const char*, unsigned, unsigned>;
  struct Recent {
    Key key;
    uint16_t index = 0;
  };
  static std::map<Key, uint16_t> known;
  static Recent recent[256];
  const Key key{site.file_name(), site.line(), site.column()};
  Recent& slot = recent[(site.line() * 37 + site.column()) & 255];
  if (slot.key == key && !sites().empty()) return slot.index;
  auto [at, fresh] = known.try_emplace(key, static_cast<uint16_t>(sites().size()));
  if (fresh) sites().push_back(site);
  slot = {key, at->second};
  return at->second;
}

const Site& site_at(uint16_t index) { return sites()[index]; }

std::string describe(const Site& site) {
  const std::string path = site.file_name();
  const size_t root = path.find("csrc/");
  return (root == std::string::npos ? path.substr(path.rfind('/') + 1) : path.substr(root)) + ":" +
         std::to_string(site.line());
}

std::string format(const char* pattern, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

void find(const char* kind, const Site& site, const std::string& text) {
  const std::string where = describe(site);
  for (Finding& known : report->findings) {
    if (known.kind == kind && known.where == where) {
      ++known.count;
      return;
    }
  }
  if (report->findings.size() >= kMostFindings) return;
  report->findings.push_back({kind, block->position() + text, where});
}

}  // namespace flashvl::simt
