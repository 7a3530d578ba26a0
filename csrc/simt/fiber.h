// A thread of execution that runs until it says so: one for each CUDA thread of a block.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace flashvl::simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*entry)());  // `entry` begins at the first resume and ends in a last suspend
  void resume();                // from the scheduler
  void suspend();               // from inside, back to the scheduler
  void finish();                // a suspend that is never resumed

 private:
  void enter_fiber();
  void leave_fiber(bool for_good);

  char* stack_;
#if defined(__x86_64__)
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
  void* fake_inside_ = nullptr;  // AddressSanitizer's stacks
  void* fake_outside_ = nullptr;
  const void* outside_bottom_ = nullptr;
  size_t outside_size_ = 0;
  bool started_ = false;
  void (*entry_)() = nullptr;
  static void first();
};

}  // namespace flashvl::simt
