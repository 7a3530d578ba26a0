// flashvl_cpu::peak and flashvl_cpu::stream_read: the ceilings that bench/ceilings.py measures.
//
// A measurement repeats one parallel region and keeps the best: whatever else the machine does only
// ever slows a region down. Regions last milliseconds, so that some fall between two interruptions.

#include "../cpu/peak.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch/dispatch.h"
#include "tensors.h"

namespace flashvl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kRegion = 4e-3;  // seconds: starting the threads takes 1/400 of it
constexpr int64_t kBlock = 4096;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

cpu::Peak peak_named(const std::string& what) {
  if (what == "fma_f32") return cpu::Peak::fma_f32;
  if (what == "dot_bf16") return cpu::Peak::dot_bf16;
  if (what == "tiles_bf16") return cpu::Peak::tiles_bf16;
  throw std::invalid_argument("peak: what is '" + what +
                              "'; needs fma_f32, dot_bf16 or tiles_bf16");
}

// FLOP/s of all threads together; 0 where the level in force has no such instruction.
double peak(std::string what, double seconds) {
  static cpu::PeakLoop* const kernel = FLASHVL_SELECT(cpu::PeakLoop, peak_loop);
  const cpu::Peak kind = peak_named(what);
  const double flops = static_cast<double>(kernel(kind, 1));
  if (flops == 0) return 0.0;
  const int64_t threads = torch::stable::get_num_threads();
  const auto region = [&](int64_t rounds) {
    const auto start = Clock::now();
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernel(kind, rounds);
    });
    return since(start);
  };
  // The length is found on this thread alone, and by the better of two tries: on a busy machine a
  // region of any length may wait long for its last thread.
  const auto alone = [&](int64_t rounds) {
    const auto start = Clock::now();
    kernel(kind, rounds);
    return since(start);
  };
  int64_t rounds = 64;
  while (std::min(alone(rounds), alone(rounds)) < kRegion) rounds *= 2;
  double best = region(rounds);
  const auto start = Clock::now();
  while (since(start) < seconds) best = std::min(best, region(rounds));
  return flops * static_cast<double>(rounds * threads) / best;
}

// Bytes a second of reading x once with all threads: the best pass of those that `seconds` allow.
double stream_read(Tensor x, double seconds) {
  static cpu::ReadLoop* const kernel = FLASHVL_SELECT(cpu::ReadLoop, read_loop);
  if (dtype_of("stream_read", "x", x) != cpu::DType::f32 || !x.is_contiguous()) {
    throw std::invalid_argument("stream_read: x needs to be contiguous float32");
  }
  const int64_t blocks = x.numel() * static_cast<int64_t>(sizeof(float)) / kBlock;
  if (blocks == 0) throw std::invalid_argument("stream_read: x needs at least 4096 bytes");
  const char* bytes = static_cast<const char*>(x.const_data_ptr());
  const auto pass = [&] {
    const auto start = Clock::now();
    torch::stable::parallel_for(0, blocks, 64, [&](int64_t begin, int64_t end) {
      kernel(bytes + begin * kBlock, (end - begin) * kBlock);
    });
    return since(start);
  };
  double best = pass();
  const auto start = Clock::now();
  while (since(start) < seconds) best = std::min(best, pass());
  return static_cast<double>(blocks * kBlock) / best;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def("peak(str what, float seconds) -> float");
  m.def("stream_read(Tensor x, float seconds) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CompositeExplicitAutograd, m) {
  m.impl("peak", TORCH_BOX(&peak));
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("stream_read", TORCH_BOX(&stream_read)); }

}  // namespace flashvl
