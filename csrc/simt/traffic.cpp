// Sectors of global memory and wavefronts of shared memory.

#include "traffic.h"

#include <algorithm>
#include <tuple>
#include <unordered_set>

#include "report.h"

namespace flashvl::simt {
namespace {

constexpr uint64_t kSector = 32;
constexpr int kBanks = 32, kBankBytes = 4;

std::unordered_set<uint64_t> sectors_read, sectors_written;

}  // namespace

void AccessLog::add(Space space, int lane, const void* address, size_t bytes, uint16_t site) {
  std::vector<uint32_t>& numbers = numbers_[lane];
  const size_t key = site * 4 + static_cast<size_t>(space);
  if (numbers.size() <= key) numbers.resize(key + 1);
  accesses_.push_back({reinterpret_cast<uint64_t>(address), numbers[key]++, site,
                       static_cast<uint8_t>(lane), static_cast<uint8_t>(bytes), space});
}

void AccessLog::flush() {
  if (accesses_.empty()) return;
  const auto key = [](const Access& a) { return std::tuple(a.space, a.site, a.number); };
  // By lane within an access: the quarters of a warp go together, whichever lane ran first.
  std::sort(accesses_.begin(), accesses_.end(), [&](const Access& a, const Access& b) {
    return std::tuple(key(a), a.lane) < std::tuple(key(b), b.lane);
  });
  for (size_t begin = 0; begin < accesses_.size();) {
    size_t end = begin + 1;
    while (end < accesses_.size() && key(accesses_[end]) == key(accesses_[begin])) ++end;
    count(accesses_.data() + begin, accesses_.data() + end);
    begin = end;
  }
  accesses_.clear();
  for (auto& numbers : numbers_) numbers.clear();
}

void AccessLog::count(const Access* begin, const Access* end) {
  Counters& c = report->counters;
  if (begin->space == Space::shared_read || begin->space == Space::shared_write) {
    uint64_t addresses[kLanes] = {};
    for (const Access* a = begin; a != end; ++a) addresses[a->lane % kLanes] = a->address;
    ++(begin->space == Space::shared_read ? c.shared_reads : c.shared_writes);
    count_wavefronts(addresses, kLanes, begin->bytes);
    return;
  }
  const bool read = begin->space == Space::global_read;
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const Access* a = begin; a != end; ++a) spans.push_back({a->address, a->address + a->bytes});
  std::sort(spans.begin(), spans.end());
  int64_t bytes = 0, sectors = 0;
  uint64_t covered = 0, next_sector = 0;
  for (const auto& [from, to] : spans) {
    bytes += static_cast<int64_t>(to - std::min(to, std::max(from, covered)));
    covered = std::max(covered, to);
    for (uint64_t s = std::max(from / kSector, next_sector); s <= (to - 1) / kSector; ++s) {
      ++sectors;
      next_sector = s + 1;
      if (read && sectors_written.count(s)) continue;  // still in the cache
      (read ? sectors_read : sectors_written).insert(s);
    }
  }
  ++(read ? c.global_reads : c.global_writes);
  (read ? c.global_read_bytes : c.global_write_bytes) += bytes;
  (read ? c.read_sectors : c.write_sectors) += sectors;
  c.wide_accesses += begin->bytes == 16;
}

// Up to 4 bytes a lane the warp goes at once, 8 bytes in halves, 16 bytes in quarters; within one
// of these, the most distinct words that a bank is asked for is the number of wavefronts. A lane
// that takes no part has address 0.
void count_wavefronts(const uint64_t* addresses, int lanes, int bytes) {
  const int together = std::min(kLanes, kBanks * kBankBytes / std::max(bytes, kBankBytes));
  for (int first = 0; first < lanes; first += together) {
    std::vector<uint64_t> words;
    for (int i = first; i < std::min(lanes, first + together); ++i) {
      if (addresses[i] == 0) continue;
      for (uint64_t w = addresses[i] / kBankBytes; w <= (addresses[i] + bytes - 1) / kBankBytes;
           ++w) {
        words.push_back(w);
      }
    }
    if (words.empty()) continue;
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int asked[kBanks] = {};
    int most = 1;
    for (uint64_t w : words) most = std::max(most, ++asked[w % kBanks]);
    report->counters.shared_wavefronts += most;
    report->counters.bank_conflicts += most - 1;
  }
}

void begin_traffic() {
  sectors_read.clear();
  sectors_written.clear();
}

void end_traffic() {
  report->counters.unique_read_sectors = static_cast<int64_t>(sectors_read.size());
  report->counters.unique_write_sectors = static_cast<int64_t>(sectors_written.size());
}

}  // namespace flashvl::simt
