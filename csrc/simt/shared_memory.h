// The shared memory of a block, and for each byte who wrote and read it last.
//
// Two accesses of different threads race when one writes and no synchronisation lies between.
// What lies between is a happens-before order (vector clocks, Lamport; FastTrack, Flanagan and
// Freund, PLDI 2009): every thread has a clock, and knows how far it has seen the others'. A
// barrier of the whole block just starts a new epoch; named barriers and sync_warp join what their
// members know.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "api.h"

namespace flashvl::simt {

// One cp.async of a thread until it lands.
struct Copy {
  unsigned char* to;
  size_t bytes;
  unsigned char data[16];
  Site site;
};

struct Copies {
  std::vector<Copy> open;                // not yet committed
  std::deque<std::vector<Copy>> groups;  // oldest first
};

class SharedMemory {
 public:
  SharedMemory(int threads, size_t dynamic_bytes, size_t limit);

  void begin_block();
  void order_all();  // a barrier that all threads of the block wait at
  // What a thread hands over when it arrives at a smaller one, and what it learns when it goes on.
  void release(int id, std::vector<uint32_t>& handed);
  void acquire(int id, const std::vector<uint32_t>& handed);

  void* array(size_t bytes, const Site& site);
  void* dynamic(int64_t offset, const Site& site);

  // False where the bytes are not to be touched; then the finding has been made.
  bool check(const void* at, size_t bytes, const Site& site, const char* what);
  void did_read(const void* at, size_t bytes, int thread, const Site& site);
  void did_write(const void* at, size_t bytes, int thread, bool atomic, const Site& site);
  void begin_copy(const void* at, size_t bytes, int thread, const Site& site);
  void end_copy(const void* at, size_t bytes);

 private:
  static constexpr int kReaders = 8;  // more in one epoch replace each other, a warp's own first
  struct Reader {
    uint32_t clock;
    uint16_t thread, site;
  };
  struct Byte {
    uint32_t block = 0;  // the fields below are of this block
    uint32_t write_epoch = 0, read_epoch = 0, write_clock = 0;
    uint16_t writer = 0, write_site = 0;
    bool written = false, pending = false, atomic = false;
    uint8_t readers = 0, next_reader = 0;
    Reader reader[kReaders];
  };
  struct Region {
    size_t begin, bytes;
    uint16_t site;
  };

  Byte& byte(size_t offset);
  bool seen(int thread, int other, uint32_t clock) const;
  void against_write(const Byte& b, int thread, bool atomic, const Site& site, bool writes);
  size_t offset_of(const void* at) const;

  int threads_;
  size_t limit_, dynamic_bytes_;
  std::vector<unsigned char> memory_;
  unsigned char* base_;
  std::vector<Byte> bytes_;
  std::vector<Region> regions_;
  std::vector<uint32_t> clock_;
  std::vector<uint32_t> known_;  // threads x threads
  uint32_t epoch_ = 1, block_ = 0;
};

}  // namespace flashvl::simt
