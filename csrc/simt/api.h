// What the models of memory.h, sync.h and the like ask of the runtime: one function an event.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

namespace flashvl::simt {

using Site = std::source_location;

// Global memory. An access outside of every registered allocation is reported and not made: a read
// then gives zeros.
void global_read(void* to, const void* from, size_t bytes, const Site& site);
void global_write(void* to, const void* from, size_t bytes, const Site& site);
bool global_update(void* at, size_t bytes, const Site& site);  // an atomic; false: not to be made

// Shared memory.
void* shared_array(size_t bytes, const Site& site);  // the same for every thread of the block
void* shared_dynamic(int64_t offset, const Site& site);
void shared_read(void* to, const void* from, size_t bytes, const Site& site);
void shared_write(void* to, const void* from, size_t bytes, const Site& site);
bool shared_update(void* at, size_t bytes, const Site& site);

// cp.async: the bytes are fetched now and written when the thread waits for their group.
void copy_async(void* to, const void* from, size_t bytes, bool fill, const Site& site);
void copy_async_commit();
void copy_async_wait(int outstanding);

void barrier_block(const Site& site);
void barrier_named(int id, int threads, bool wait, const Site& site);
void barrier_warp(uint32_t mask, const Site& site);

// An instruction that the lanes of `mask` execute together. Each lane hands in its operands; the
// lane that comes last computes the results of all.
enum class Kind { shuffle, vote, sync, ldmatrix, mma };
constexpr int kLanes = 32;
struct Collective {
  Kind kind;
  uint32_t mask = 0, arrived = 0, left = 0;
  Site site;
  alignas(16) unsigned char in[kLanes][48];
  alignas(16) unsigned char out[kLanes][16];

  template <class T>
  T input(int lane) const {
    static_assert(sizeof(T) <= sizeof(in[0]));
    T value;
    std::memcpy(&value, in[lane], sizeof(T));
    return value;
  }
  template <class T>
  void result(int lane, const T& value) {
    static_assert(sizeof(T) <= sizeof(out[0]));
    std::memcpy(out[lane], &value, sizeof(T));
  }
};

int current_lane();
Collective& collective_join(Kind kind, uint32_t mask, const void* in, size_t bytes,
                            const Site& site);
void collective_finish(Collective& all);
void collective_wait(Collective& all);
void collective_leave(Collective& all);

template <class Out, class In, class Finish>
Out collective(Kind kind, uint32_t mask, const In& in, const Site& site, Finish&& finish) {
  Collective& all = collective_join(kind, mask, &in, sizeof(In), site);
  if (all.arrived == all.mask) {
    finish(all);
    collective_finish(all);
  } else {
    collective_wait(all);
  }
  Out out;
  std::memcpy(&out, all.out[current_lane()], sizeof(Out));
  collective_leave(all);
  return out;
}

// A shuffle's source lane takes no part in it: the result is undefined on hardware.
void report_absent_lane(int lane, int source, const Site& site);
// `rows` lanes each read 16 bytes; eight make one wavefront when they hit different banks.
void ldmatrix_rows(const void* const* rows, int count, unsigned char (*to)[16], const Site& site);
void count_mma();

}  // namespace flashvl::simt
