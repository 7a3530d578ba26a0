// Every access of a thread: checked, logged for its warp, made.

#include <algorithm>

#include "block.h"
#include "global_memory.h"

namespace flashvl::simt {
namespace {

std::vector<Allocation> allocations;  // by address
size_t recent = 0;

const Allocation* allocation_of(uintptr_t at) {
  if (recent < allocations.size() && at - allocations[recent].begin < allocations[recent].bytes) {
    return &allocations[recent];
  }
  for (size_t i = 0; i < allocations.size(); ++i) {
    if (at - allocations[i].begin < allocations[i].bytes) {
      recent = i;
      return &allocations[i];
    }
  }
  return nullptr;
}

void report_stray(uintptr_t at, size_t bytes, const Site& site, const char* what) {
  const Allocation* nearest = nullptr;
  // To the nearer edge: an index one past the end is far from the beginning of a large tensor, and
  // another tensor may begin closer.
  const auto distance = [&](const Allocation& a) {
    return at < a.begin ? a.begin - at : at - a.begin - a.bytes;
  };
  for (const Allocation& a : allocations) {
    if (nearest == nullptr || distance(a) < distance(*nearest)) nearest = &a;
  }
  if (nearest == nullptr) {
    find("global_out_of_bounds", site,
         format("%s of %zu bytes; the launch has no tensors", what, bytes));
    return;
  }
  find("global_out_of_bounds", site,
       format("%s of %zu bytes at address %#zx, byte %lld of %s, which has %zu bytes. Guard the "
              "index, or mask what lies past the end",
              what, bytes, at, static_cast<long long>(at - nearest->begin), nearest->name.c_str(),
              nearest->bytes));
}

bool check_global(const void* pointer, size_t bytes, const Site& site, const char* what,
                  bool writes) {
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  const Allocation* in = allocation_of(at);
  if (in == nullptr || at - in->begin + bytes > in->bytes) {
    report_stray(at, bytes, site, what);
    return false;
  }
  if (at % bytes) {
    find("global_misaligned", site,
         format("%s of %zu bytes at byte %zu of %s, whose address is not a multiple of %zu. Use "
                "narrower accesses for such strides",
                what, bytes, at - in->begin, in->name.c_str(), bytes));
    return false;
  }
  if (writes && !in->writable) {
    find("write_to_input", site, format("%s into %s, an input", what, in->name.c_str()));
    return false;
  }
  return true;
}

void log(Space space, const void* at, size_t bytes, const Site& site) {
  block->warp().log.add(space, block->lane(), at, bytes, site_index(site));
}

void land(const Copy& copy) {
  std::memcpy(copy.to, copy.data, copy.bytes);
  block->shared.did_write(copy.to, copy.bytes, block->current(), false, copy.site);
}

}  // namespace

void set_allocations(std::vector<Allocation> all) {
  allocations = std::move(all);
  recent = 0;
}

void global_read(void* to, const void* from, size_t bytes, const Site& site) {
  if (!check_global(from, bytes, site, "a load", false)) {
    std::memset(to, 0, bytes);
    return;
  }
  log(Space::global_read, from, bytes, site);
  std::memcpy(to, from, bytes);
}

void global_write(void* to, const void* from, size_t bytes, const Site& site) {
  if (!check_global(to, bytes, site, "a store", true)) return;
  log(Space::global_write, to, bytes, site);
  std::memcpy(to, from, bytes);
}

bool global_update(void* at, size_t bytes, const Site& site) {
  if (!check_global(at, bytes, site, "an atomic", true)) return false;
  ++report->counters.global_atomics;
  return true;
}

void* shared_array(size_t bytes, const Site& site) { return block->shared.array(bytes, site); }
void* shared_dynamic(int64_t offset, const Site& site) {
  return block->shared.dynamic(offset, site);
}

void shared_read(void* to, const void* from, size_t bytes, const Site& site) {
  if (!block->shared.check(from, bytes, site, "a load")) {
    std::memset(to, 0, bytes);
    return;
  }
  log(Space::shared_read, from, bytes, site);
  block->shared.did_read(from, bytes, block->current(), site);
  std::memcpy(to, from, bytes);
}

void shared_write(void* to, const void* from, size_t bytes, const Site& site) {
  if (!block->shared.check(to, bytes, site, "a store")) return;
  log(Space::shared_write, to, bytes, site);
  block->shared.did_write(to, bytes, block->current(), false, site);
  std::memcpy(to, from, bytes);
}

bool shared_update(void* at, size_t bytes, const Site& site) {
  if (!block->shared.check(at, bytes, site, "an atomic")) return false;
  ++report->counters.shared_atomics;
  block->shared.did_write(at, bytes, block->current(), true, site);
  return true;
}

void copy_async(void* to, const void* from, size_t bytes, bool fill, const Site& site) {
  if (!block->shared.check(to, bytes, site, "a cp.async")) return;
  Copy copy{static_cast<unsigned char*>(to), bytes, {}, site};
  if (fill && check_global(from, bytes, site, "a cp.async", false)) {
    log(Space::global_read, from, bytes, site);
    std::memcpy(copy.data, from, bytes);
  }
  log(Space::shared_write, to, bytes, site);
  block->shared.begin_copy(to, bytes, block->current(), site);
  report->counters.cp_async += block->lane() == 0;
  block->thread().copies.open.push_back(copy);
}

void copy_async_commit() {
  Copies& copies = block->thread().copies;
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}

void copy_async_wait(int outstanding) {
  auto& groups = block->thread().copies.groups;
  while (static_cast<int>(groups.size()) > outstanding) {
    for (const Copy& copy : groups.front()) {
      block->shared.end_copy(copy.to, copy.bytes);
      land(copy);
    }
    groups.pop_front();
  }
}

void ldmatrix_rows(const void* const* rows, int count, unsigned char (*to)[16], const Site& site) {
  const int first = block->current() - block->lane();
  for (int begin = 0; begin < count; begin += 8) {
    uint64_t addresses[8];
    for (int i = 0; i < 8; ++i) {
      const void* row = rows[begin + i];
      addresses[i] = reinterpret_cast<uint64_t>(row);
      if (!block->shared.check(row, 16, site, "ldmatrix")) {
        std::memset(to[begin + i], 0, 16);
        continue;
      }
      block->shared.did_read(row, 16, first + begin + i, site);
      std::memcpy(to[begin + i], row, 16);
    }
    count_wavefronts(addresses, 8, 16);
  }
}

}  // namespace flashvl::simt
