// Checks of shared memory: bounds, alignment, first use, races, and copies still under way.

#include "shared_memory.h"

#include <algorithm>

#include "block.h"

namespace flashvl::simt {
namespace {

constexpr size_t kAlign = 128;    // so that banks do not depend on which array comes first
constexpr size_t kRedZone = 128;  // between arrays: an overrun meets no neighbour

size_t round_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

SharedMemory::SharedMemory(int threads, size_t dynamic_bytes, size_t limit)
    : threads_(threads),
      limit_(limit),
      dynamic_bytes_(dynamic_bytes),
      clock_(threads, 1),
      known_(static_cast<size_t>(threads) * threads, 0) {
  // Room for the limit and a red zone after each of 64 arrays.
  const size_t room = round_up(std::max(limit, dynamic_bytes)) + 64 * (kAlign + kRedZone);
  memory_.resize(room + kAlign);
  base_ = memory_.data() + (kAlign - reinterpret_cast<uintptr_t>(memory_.data()) % kAlign) % kAlign;
  bytes_.resize(room);
}

void SharedMemory::begin_block() {
  ++block_;
  ++epoch_;
  regions_.assign(1, {0, dynamic_bytes_, 0});
  report->counters.shared_bytes =
      std::max(report->counters.shared_bytes, static_cast<int64_t>(dynamic_bytes_));
}

void SharedMemory::order_all() { ++epoch_; }

void SharedMemory::release(int id, std::vector<uint32_t>& handed) {
  const uint32_t* knows = &known_[static_cast<size_t>(id) * threads_];
  handed.resize(threads_, 0);
  for (int t = 0; t < threads_; ++t) handed[t] = std::max(handed[t], knows[t]);
  handed[id] = std::max(handed[id], clock_[id]++);
}

void SharedMemory::acquire(int id, const std::vector<uint32_t>& handed) {
  uint32_t* knows = &known_[static_cast<size_t>(id) * threads_];
  for (int t = 0; t < threads_; ++t) knows[t] = std::max(knows[t], handed[t]);
}

void* SharedMemory::array(size_t bytes, const Site& site) {
  const uint16_t index = site_index(site);
  size_t end = round_up(dynamic_bytes_) + kRedZone, total = dynamic_bytes_;
  for (size_t i = 1; i < regions_.size(); ++i) {
    if (regions_[i].site == index) return base_ + regions_[i].begin;
    end = regions_[i].begin + round_up(regions_[i].bytes) + kRedZone;
    total += regions_[i].bytes;
  }
  total += bytes;
  if (total > limit_ || end + bytes > bytes_.size()) {
    find("shared_out_of_bounds", site,
         format("the block's shared arrays need %zu bytes; the device has %zu", total, limit_));
    block->abandon();
  }
  regions_.push_back({end, bytes, index});
  report->counters.shared_bytes =
      std::max(report->counters.shared_bytes, static_cast<int64_t>(total));
  return base_ + end;
}

void* SharedMemory::dynamic(int64_t offset, const Site& site) {
  if (offset < 0 || static_cast<size_t>(offset) > dynamic_bytes_) {
    find("shared_out_of_bounds", site,
         format("byte %lld of %zu bytes of dynamic shared memory; give the launch more",
                static_cast<long long>(offset), dynamic_bytes_));
  }
  return base_ + offset;
}

size_t SharedMemory::offset_of(const void* at) const {
  return reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(base_);
}

bool SharedMemory::check(const void* at, size_t bytes, const Site& site, const char* what) {
  const size_t offset = offset_of(at);
  if (reinterpret_cast<uintptr_t>(at) % bytes) {
    find("shared_misaligned", site,
         format("%s of %zu bytes at byte %zu of shared memory, which is not a multiple of %zu. Pad "
                "the rows or use narrower accesses",
                what, bytes, offset, bytes));
    return false;
  }
  for (const Region& region : regions_) {
    if (offset >= region.begin && offset + bytes <= region.begin + region.bytes) return true;
  }
  const Region* nearest = &regions_[0];
  for (const Region& region : regions_) {
    if (offset < region.begin + round_up(region.bytes) + kRedZone && offset >= region.begin) {
      nearest = &region;
    }
  }
  const std::string array = nearest == &regions_[0]
                                ? "the dynamic part"
                                : "the array of " + describe(site_at(nearest->site));
  find(
      "shared_out_of_bounds", site,
      format("%s of %zu bytes at byte %lld of %s, which has %zu bytes. Check the index against the "
             "array's size",
             what, bytes, static_cast<long long>(offset - nearest->begin), array.c_str(),
             nearest->bytes));
  return false;
}

SharedMemory::Byte& SharedMemory::byte(size_t offset) {
  Byte& b = bytes_[offset];
  if (b.block != block_) {
    b.block = block_;
    b.written = b.pending = false;
    b.write_epoch = b.read_epoch = 0;
    b.readers = 0;
  }
  return b;
}

bool SharedMemory::seen(int thread, int other, uint32_t clock) const {
  return thread == other || known_[static_cast<size_t>(thread) * threads_ + other] >= clock;
}

void SharedMemory::against_write(const Byte& b, int thread, bool atomic, const Site& site,
                                 bool writes) {
  if (b.pending) {
    find(writes ? "shared_race" : "missing_cp_async_wait", site,
         format("%s bytes that the cp.async of %s (thread %d) may still be writing. Wait for its "
                "group, then synchronise",
                writes ? "writes" : "reads", describe(site_at(b.write_site)).c_str(), b.writer));
  } else if (b.write_epoch == epoch_ && !seen(thread, b.writer, b.write_clock) &&
             !(atomic && b.atomic)) {
    find("shared_race", site,
         format("%s what thread %d writes at %s, and no barrier lies between",
                writes ? "writes" : "reads", b.writer, describe(site_at(b.write_site)).c_str()));
  }
}

void SharedMemory::did_read(const void* at, size_t bytes, int thread, const Site& site) {
  const size_t offset = offset_of(at);
  const uint16_t index = site_index(site);
  bool told = false;
  for (size_t i = offset; i < offset + bytes; ++i) {
    Byte& b = byte(i);
    if (!b.written && !b.pending && !told) {
      told = true;
      find("shared_uninitialised", site,
           format("reads byte %zu of shared memory, which nobody has written", i));
    }
    against_write(b, thread, false, site, false);
    if (b.read_epoch != epoch_) {
      b.read_epoch = epoch_;
      b.readers = 0;
    }
    int slot = 0;
    while (slot < b.readers && !seen(thread, b.reader[slot].thread, b.reader[slot].clock) &&
           b.reader[slot].thread / kLanes != thread / kLanes) {
      ++slot;
    }
    if (slot == kReaders) slot = b.next_reader = (b.next_reader + 1) % kReaders;
    b.readers = std::max<uint8_t>(b.readers, static_cast<uint8_t>(slot + 1));
    b.reader[slot] = {clock_[thread], static_cast<uint16_t>(thread), index};
  }
}

void SharedMemory::did_write(const void* at, size_t bytes, int thread, bool atomic,
                             const Site& site) {
  const size_t offset = offset_of(at);
  const uint16_t index = site_index(site);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Byte& b = byte(i);
    against_write(b, thread, atomic, site, true);
    for (int r = 0; b.read_epoch == epoch_ && r < b.readers; ++r) {
      if (seen(thread, b.reader[r].thread, b.reader[r].clock)) continue;
      find("shared_race", site,
           format("writes what thread %d reads at %s, and no barrier lies between",
                  b.reader[r].thread, describe(site_at(b.reader[r].site)).c_str()));
    }
    b.readers = 0;
    b.written = true;
    b.pending = false;
    b.atomic = atomic;
    b.write_epoch = epoch_;
    b.write_clock = clock_[thread];
    b.writer = static_cast<uint16_t>(thread);
    b.write_site = index;
  }
}

void SharedMemory::begin_copy(const void* at, size_t bytes, int thread, const Site& site) {
  did_write(at, bytes, thread, false, site);
  for (size_t i = offset_of(at); i < offset_of(at) + bytes; ++i) bytes_[i].pending = true;
}

void SharedMemory::end_copy(const void* at, size_t bytes) {
  for (size_t i = offset_of(at); i < offset_of(at) + bytes; ++i) bytes_[i].pending = false;
}

}  // namespace flashvl::simt
