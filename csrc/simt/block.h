// One block of a launch while it runs: its threads, its warps, and what they wait for.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "report.h"
#include "shared_memory.h"
#include "traffic.h"

namespace flashvl::simt {

// Thrown through a thread whose block cannot go on; caught where the thread began.
struct Abandoned {};

enum class State { ready, waiting, done };

struct Thread {
  Fiber fiber;
  Dim3 index;
  int id = 0;
  State state = State::done;
  const char* waits_for = "";
  Site waits_at;
  Copies copies;  // cp.async
};

struct Warp {
  std::vector<Collective*> open;
  AccessLog log;
  uint32_t alive = 0;
};

struct Barrier {
  int expected = 0;
  int arrived = 0;
  Site site;
  std::vector<int> waiting;      // thread ids, the last one included
  std::vector<uint32_t> handed;  // by those that arrived and went on
};

class Block {
 public:
  Block(Dim3 shape, size_t dynamic_bytes, size_t shared_limit, std::string kernel);

  void run(Dim3 index, const void* body);  // body: the std::function<void()> of every thread
  std::string position() const;            // "kernel, block (..), thread (..): "

  Thread& thread() { return *threads_[current_]; }
  Thread& thread(int id) { return *threads_[id]; }
  Warp& warp() { return warps_[current_ / kLanes]; }
  int count() const { return static_cast<int>(threads_.size()); }
  int current() const { return current_; }
  int lane() const { return current_ % kLanes; }
  bool abandoned() const { return abandoned_; }

  void wait(const char* what, const Site& site);  // until `wake`
  void wake(int id);
  [[noreturn]] void abandon();  // the rest of this block is not run

  void arrive(int id, int expected, bool wait, const Site& site);
  Collective& join(Kind kind, uint32_t mask, const void* in, size_t bytes, const Site& site);
  void finish(Collective& all);
  void leave(Collective& all);
  void sync_lanes(uint32_t mask);

  SharedMemory shared;

 private:
  void run_ready_lanes(size_t warp, bool& progress);
  void report_standstill();
  void complete(Barrier& barrier);
  static void thread_main();

  Dim3 shape_, index_;
  std::string kernel_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::vector<Barrier> barriers_;
  std::deque<Collective> pool_;
  std::vector<Collective*> unused_;
  const void* body_ = nullptr;
  int current_ = 0;
  bool abandoned_ = false;
};

extern Block* block;  // the one that runs

}  // namespace flashvl::simt
