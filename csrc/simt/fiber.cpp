// The switch between stacks: by hand on x86-64, where ucontext's costs two system calls each.

#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace flashvl::simt {
namespace {

// Reserved, not touched. AddressSanitizer's frames are several times larger.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 1 << 19;
#else
constexpr size_t kStack = 1 << 17;
#endif

Fiber* starting = nullptr;

}  // namespace

#if defined(__x86_64__)
// Keeps the registers a call must keep, stores the stack pointer in *rdi, goes on from rsi.
asm(R"(
.text
.hidden flashvl_simt_switch
.globl flashvl_simt_switch
.type flashvl_simt_switch, @function
flashvl_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size flashvl_simt_switch, .-flashvl_simt_switch
)");
extern "C" void flashvl_simt_switch(void** from, void* to);
#endif

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, 4096, PROT_NONE);  // an overrun stops here
  stack_ = static_cast<char*>(memory);
}

Fiber::~Fiber() { munmap(stack_, kStack); }

void Fiber::first() {
  Fiber* self = starting;
  self->enter_fiber();
  self->entry_();
}

void Fiber::start(void (*entry)()) {
  entry_ = entry;
  started_ = false;
#if defined(__x86_64__)
  // At the first instruction of a function the stack pointer is 8 below a multiple of 16.
  auto top = reinterpret_cast<uintptr_t*>(stack_ + kStack - 64);
  *--top = 0;  // where `first` would return to; aligned below
  *--top = reinterpret_cast<uintptr_t>(&Fiber::first);
  for (int i = 0; i < 6; ++i) *--top = 0;
  inside_ = top;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_;
  inside_.uc_stack.ss_size = kStack;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &Fiber::first, 0);
#endif
}

void Fiber::resume() {
  starting = this;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_outside_, stack_, kStack);
#endif
#if defined(__x86_64__)
  flashvl_simt_switch(&outside_, inside_);
#else
  swapcontext(&outside_, &inside_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_outside_, nullptr, nullptr);
#endif
}

void Fiber::enter_fiber() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(started_ ? fake_inside_ : nullptr, &outside_bottom_,
                                  &outside_size_);
#endif
  started_ = true;
}

void Fiber::leave_fiber(bool for_good) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_inside_, outside_bottom_,
                                 outside_size_);
#else
  (void)for_good;
#endif
#if defined(__x86_64__)
  flashvl_simt_switch(&inside_, outside_);
#else
  swapcontext(&inside_, &outside_);
#endif
}

void Fiber::suspend() {
  leave_fiber(false);
  enter_fiber();
}

void Fiber::finish() { leave_fiber(true); }

}  // namespace flashvl::simt
