// The scheduler of a block, its barriers, and the instructions a warp executes together.

#include "block.h"

#include <algorithm>
#include <functional>

namespace flashvl::cuda {
simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;
}

namespace flashvl::simt {
namespace {

constexpr int kBarriers = 16;  // bar.sync 0 to 15

const char* name(Kind kind) {
  switch (kind) {
    case Kind::shuffle:
      return "a shuffle";
    case Kind::vote:
      return "a vote";
    case Kind::sync:
      return "sync_warp";
    case Kind::ldmatrix:
      return "ldmatrix";
    case Kind::mma:
      return "mma";
  }
  return "";
}

}  // namespace

Block* block = nullptr;

Block::Block(Dim3 shape, size_t dynamic_bytes, size_t shared_limit, std::string kernel)
    : shared(static_cast<int>(shape.x * shape.y * shape.z), dynamic_bytes, shared_limit),
      shape_(shape),
      kernel_(std::move(kernel)) {
  const int threads = static_cast<int>(shape.x * shape.y * shape.z);
  for (int id = 0; id < threads; ++id) {
    auto thread = std::make_unique<Thread>();
    thread->id = id;
    thread->index = {id % shape.x, id / shape.x % shape.y, id / (shape.x * shape.y)};
    threads_.push_back(std::move(thread));
  }
  warps_.resize((threads + kLanes - 1) / kLanes);
  barriers_.resize(kBarriers);
}

std::string Block::position() const {
  const Dim3& t = threads_[current_]->index;
  return format("%s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel_.c_str(), index_.x,
                index_.y, index_.z, t.x, t.y, t.z);
}

void Block::thread_main() {
  Block& self = *block;
  Thread& me = self.thread();
  try {
    (*static_cast<const std::function<void()>*>(self.body_))();
  } catch (const Abandoned&) {
  }
  me.state = State::done;
  self.warp().alive &= ~(1u << self.lane());
  me.fiber.finish();
}

void Block::run(Dim3 index, const void* body) {
  block = this;
  index_ = index;
  body_ = body;
  abandoned_ = false;
  cuda::blockIdx = index;
  cuda::blockDim = shape_;
  shared.begin_block();
  for (Barrier& barrier : barriers_) barrier = {};
  for (size_t w = 0; w < warps_.size(); ++w) {
    const int lanes = std::min<int>(kLanes, count() - static_cast<int>(w) * kLanes);
    warps_[w].alive = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    warps_[w].open.clear();
  }
  for (auto& thread : threads_) {
    thread->state = State::ready;
    thread->copies = {};
    thread->fiber.start(&Block::thread_main);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t w = 0; w < warps_.size(); ++w) run_ready_lanes(w, progress);
    const auto waits = [](const auto& t) { return t->state == State::waiting; };
    if (!progress && std::any_of(threads_.begin(), threads_.end(), waits)) {
      report_standstill();
      abandoned_ = true;
      for (auto& thread : threads_) {
        if (thread->state == State::waiting) thread->state = State::ready;
      }
      progress = true;
    }
  }
  for (Warp& warp : warps_) warp.log.flush();
  pool_.clear();
  unused_.clear();
}

// A warp runs as far as it gets before the next one begins: its lanes meet often.
void Block::run_ready_lanes(size_t warp, bool& progress) {
  const int first = static_cast<int>(warp) * kLanes;
  const int last = std::min(first + kLanes, count());
  for (bool again = true; again;) {
    again = false;
    for (current_ = first; current_ < last; ++current_) {
      Thread& thread = *threads_[current_];
      if (thread.state != State::ready) continue;
      cuda::threadIdx = thread.index;
      thread.fiber.resume();
      again = progress = true;
    }
  }
  current_ = first;
}

void Block::report_standstill() {
  int done = 0;
  for (const auto& thread : threads_) done += thread->state == State::done;
  for (int id = 0; id < count(); ++id) {
    Thread& thread = *threads_[id];
    if (thread.state != State::waiting) continue;
    current_ = id;
    const bool block_wide = std::string(thread.waits_for) == "a barrier of the block";
    find(block_wide ? "divergent_barrier" : "divergent_collective", thread.waits_at,
         format("waits for %s that the others never reach; %d of %d threads have left the kernel. "
                "Every thread that is counted or named in the mask must come here",
                thread.waits_for, done, count()));
  }
}

void Block::wait(const char* what, const Site& site) {
  Thread& me = thread();
  me.state = State::waiting;
  me.waits_for = what;
  me.waits_at = site;
  me.fiber.suspend();
  if (abandoned_) throw Abandoned{};
}

void Block::wake(int id) { threads_[id]->state = State::ready; }

void Block::abandon() {
  abandoned_ = true;
  for (auto& thread : threads_) {
    if (thread->state == State::waiting) thread->state = State::ready;
  }
  throw Abandoned{};
}

void Block::arrive(int id, int expected, bool wait_here, const Site& site) {
  if (abandoned_) throw Abandoned{};
  if (id < 0 || id >= kBarriers || expected <= 0 || (id != 0 && expected % kLanes != 0)) {
    find("divergent_barrier", site,
         format("barrier %d for %d threads; needs an id of 0 to 15 and a multiple of 32 threads",
                id, expected));
    abandon();
  }
  Barrier& barrier = barriers_[id];
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.site = site;
  }
  if (barrier.expected != expected) {
    find("divergent_barrier", site,
         format("barrier %d is for %d threads here and for %d at %s; use one number for both", id,
                expected, barrier.expected, describe(barrier.site).c_str()));
    abandon();
  }
  if (id == 0 && site.line() != barrier.site.line()) {
    find("divergent_barrier", site,
         "other threads of the block are at the barrier of " + describe(barrier.site) +
             ". A barrier inside of a branch must be reached by all threads or by none");
  }
  if (wait_here) {
    barrier.waiting.push_back(current_);
  } else {
    shared.release(current_, barrier.handed);
  }
  ++barrier.arrived;
  const bool last = barrier.arrived == barrier.expected;
  if (last) complete(barrier);
  if (!last && wait_here) wait("a barrier of the block", site);
}

void Block::complete(Barrier& barrier) {
  ++report->counters.barriers;
  std::vector<int> waiting;
  std::vector<uint32_t> handed;
  waiting.swap(barrier.waiting);
  handed.swap(barrier.handed);
  barrier.arrived = 0;
  const bool everyone = static_cast<int>(waiting.size()) == count();
  if (everyone) {
    shared.order_all();
  } else {
    for (int id : waiting) shared.release(id, handed);
    for (int id : waiting) shared.acquire(id, handed);
  }
  for (int id : waiting) wake(id);
  for (size_t w = 0; everyone && w < warps_.size(); ++w) warps_[w].log.flush();
}

Collective& Block::join(Kind kind, uint32_t mask, const void* in, size_t bytes, const Site& site) {
  if (abandoned_) throw Abandoned{};
  const uint32_t mine = 1u << lane();
  if (!(mask & mine)) {
    find("divergent_collective", site,
         format("%s with mask %08x, which does not name the calling lane %d", name(kind), mask,
                lane()));
    abandon();
  }
  Collective* all = nullptr;
  for (Collective* open : warp().open) {
    if (open->mask == mask && !(open->arrived & mine)) all = open;
  }
  if (all == nullptr) {
    if (unused_.empty()) unused_.push_back(&pool_.emplace_back());
    all = unused_.back();
    unused_.pop_back();
    all->kind = kind;
    all->mask = mask;
    all->arrived = all->left = 0;
    all->site = site;
    warp().open.push_back(all);
  }
  if (all->kind != kind || all->site.line() != site.line()) {
    find("divergent_collective", site,
         format("%s, while other lanes of the warp are in %s at %s. All lanes of the mask must "
                "execute the same instruction",
                name(kind), name(all->kind), describe(all->site).c_str()));
    abandon();
  }
  std::memcpy(all->in[lane()], in, bytes);
  all->arrived |= mine;
  return *all;
}

void Block::finish(Collective& all) {
  Counters& counters = report->counters;
  counters.shuffles += all.kind == Kind::shuffle;
  counters.votes += all.kind == Kind::vote;
  counters.warp_syncs += all.kind == Kind::sync;
  counters.ldmatrix += all.kind == Kind::ldmatrix;
  auto& open = warp().open;
  open.erase(std::find(open.begin(), open.end(), &all));
  const int first = current_ - lane();
  for (int i = 0; i < kLanes; ++i) {
    if (all.mask >> i & 1 && i != lane()) wake(first + i);
  }
  if ((warp().alive & ~all.mask) == 0) warp().log.flush();
}

void Block::leave(Collective& all) {
  all.left |= 1u << lane();
  if (all.left == all.mask) unused_.push_back(&all);
}

void Block::sync_lanes(uint32_t mask) {
  std::vector<uint32_t> handed;
  const int first = current_ - lane();
  for (int i = 0; i < kLanes; ++i) {
    if (mask >> i & 1) shared.release(first + i, handed);
  }
  for (int i = 0; i < kLanes; ++i) {
    if (mask >> i & 1) shared.acquire(first + i, handed);
  }
}

int current_lane() { return block->lane(); }

Collective& collective_join(Kind kind, uint32_t mask, const void* in, size_t bytes,
                            const Site& site) {
  return block->join(kind, mask, in, bytes, site);
}
void collective_finish(Collective& all) { block->finish(all); }
void collective_wait(Collective& all) { block->wait(name(all.kind), all.site); }
void collective_leave(Collective& all) { block->leave(all); }

void barrier_block(const Site& site) { block->arrive(0, block->count(), true, site); }
void barrier_named(int id, int threads, bool wait, const Site& site) {
  block->arrive(id, threads, wait, site);
}
void barrier_warp(uint32_t mask, const Site& site) {
  const char nothing = 0;
  collective<char>(Kind::sync, mask, nothing, site,
                   [](Collective& all) { block->sync_lanes(all.mask); });
}

void report_absent_lane(int lane, int source, const Site& site) {
  find("divergent_collective", site,
       format("lane %d shuffles from lane %d, which the mask does not name: undefined. Widen the "
              "mask",
              lane, source));
}

void count_mma() { ++report->counters.mma; }

}  // namespace flashvl::simt
