// From the accesses of single lanes to the instructions of a warp, and what they cost.
//
// Lanes run one after another here, so an access is logged with its source line and its number
// among this lane's accesses at that line since the lanes last met: equal pairs are one
// instruction. Lanes that loop differently often between two meetings may be matched wrongly.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "api.h"

namespace flashvl::simt {

enum class Space : uint8_t { global_read, global_write, shared_read, shared_write };

class AccessLog {
 public:
  void add(Space space, int lane, const void* address, size_t bytes, uint16_t site);
  void flush();  // the lanes have met: count what is logged

 private:
  struct Access {
    uint64_t address;
    uint32_t number;
    uint16_t site;
    uint8_t lane;
    uint8_t bytes;
    Space space;
  };
  void count(const Access* begin, const Access* end);

  std::vector<Access> accesses_;
  std::array<std::vector<uint32_t>, 32> numbers_;  // by lane, then source line
};

// Wavefronts of one shared-memory instruction: lane addresses, the same number of bytes each.
void count_wavefronts(const uint64_t* addresses, int lanes, int bytes);
void begin_traffic();  // of a launch
void end_traffic();

}  // namespace flashvl::simt
