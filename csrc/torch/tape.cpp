// See tape.h, and flashvl_kernels/tape.py for who uses the ops below.

#include "tape.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace flashvl {
namespace {

using Calls = std::vector<std::function<void()>>;

thread_local std::unique_ptr<Calls> open;

// Finished tapes by handle. A tape that is running stays alive when it is freed.
struct Tapes {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<const Calls>> calls;
  int64_t next = 1;
};

Tapes& tapes() {
  static Tapes* const all = new Tapes;  // never destroyed: tensors must not outlive torch
  return *all;
}

void begin() {
  if (recording()) throw std::logic_error("tape_begin: this thread is recording already");
  open = std::make_unique<Calls>();
}

int64_t end() {
  if (!recording()) throw std::logic_error("tape_end: this thread is not recording");
  std::shared_ptr<const Calls> calls = std::move(open);
  Tapes& all = tapes();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.calls.emplace(all.next, std::move(calls));
  return all.next++;
}

std::shared_ptr<const Calls> find(int64_t handle) {
  Tapes& all = tapes();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.calls.find(handle);
  if (found == all.calls.end()) {
    throw std::invalid_argument("tape: there is no tape " + std::to_string(handle));
  }
  return found->second;
}

int64_t length(int64_t handle) { return static_cast<int64_t>(find(handle)->size()); }

void run(int64_t handle) {
  const std::shared_ptr<const Calls> calls = find(handle);
  for (const auto& call : *calls) call();
}

void release(int64_t handle) {
  std::shared_ptr<const Calls> calls;  // destroyed after the lock is gone
  Tapes& all = tapes();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.calls.find(handle);
  if (found == all.calls.end()) return;
  calls = std::move(found->second);
  all.calls.erase(found);
}

}  // namespace

bool recording() { return open != nullptr; }

void keep(std::function<void()> call) { open->push_back(std::move(call)); }

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def("tape_begin() -> ()");
  m.def("tape_end() -> int");
  m.def("tape_length(int tape) -> int");
  m.def("tape_run(int tape) -> ()");
  m.def("tape_free(int tape) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CompositeExplicitAutograd, m) {
  m.impl("tape_begin", TORCH_BOX(&begin));
  m.impl("tape_end", TORCH_BOX(&end));
  m.impl("tape_length", TORCH_BOX(&length));
  m.impl("tape_run", TORCH_BOX(&run));
  m.impl("tape_free", TORCH_BOX(&release));
}

}  // namespace flashvl
