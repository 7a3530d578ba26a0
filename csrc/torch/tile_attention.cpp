// flashvl_cpu::tile_attention: checks, allocation and the split over tiles and heads for
// csrc/cpu/tile_attention.cpp.

#include "../cpu/tile_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/dispatch/dispatch.h"
#include "flash.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "tile_attention";
constexpr int64_t kGroupBytes = 1 << 20;  // half of a second-level cache

// Where each packed tile starts, and where the last one ends.
std::vector<int64_t> starts_of(const Tensor& lengths, int64_t rows) {
  const Tensor counts = flash_lengths(kOp, lengths, lengths.dim() == 1 ? lengths.size(0) : 0);
  const int64_t* count = static_cast<const int64_t*>(counts.const_data_ptr());
  std::vector<int64_t> starts = {0};
  for (int64_t t = 0; t < lengths.size(0); ++t) {
    if (count[t] < 0 || count[t] > rows - starts.back()) {
      throw std::invalid_argument("tile_attention: lengths are negative or exceed the rows of q");
    }
    starts.push_back(starts.back() + count[t]);
  }
  if (starts.back() != rows) {
    throw std::invalid_argument("tile_attention: lengths sum to " + std::to_string(starts.back()) +
                                "; needs " + std::to_string(rows) + ", the rows of q");
  }
  return starts;
}

// Heads that a task does at a time: what kGroupBytes of keys and values hold, as long as the
// threads still share the groups evenly.
int64_t group_of(int64_t tiles, int64_t heads, int64_t head_bytes) {
  const int64_t threads = torch::stable::get_num_threads();
  for (const int64_t group : {4, 2}) {
    if (heads % group == 0 && group * head_bytes <= kGroupBytes &&
        tiles * (heads / group) % threads == 0) {
      return group;
    }
  }
  return 1;
}

Tensor tile_attention(Tensor q, Tensor k, Tensor v, std::optional<Tensor> lengths,
                      std::optional<double> scale) {
  static cpu::TileAttentionBytes* const bytes =
      FLASHVL_SELECT(cpu::TileAttentionBytes, tile_attention_bytes);
  static cpu::TileAttentionTask* const kernel =
      FLASHVL_SELECT(cpu::TileAttentionTask, tile_attention);
  const cpu::DType dtype = dtype_of(kOp, "q", q);
  const int64_t axes = lengths ? 3 : 4;
  if (q.dim() != axes) {
    throw std::invalid_argument("tile_attention: needs q [T, N, H, D], or with lengths [N, H, D]");
  }
  for (const auto& [name, tensor] : {std::pair{"k", &k}, std::pair{"v", &v}}) {
    check_like(kOp, name, *tensor, q);
    check_shape(kOp, name, *tensor, q.sizes());
  }
  const std::vector<int64_t> starts =
      lengths ? starts_of(*lengths, q.size(0)) : std::vector<int64_t>{};
  Tensor out = empty(q, q.sizes());
  if (out.numel() == 0) return out;

  const int64_t heads = q.size(axes - 2), head_dim = q.size(axes - 1);
  int64_t tiles = q.size(0), tokens = lengths ? 0 : q.size(1), pairs = tiles * tokens * tokens;
  if (lengths) {
    tiles = static_cast<int64_t>(starts.size()) - 1;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t count = starts[t + 1] - starts[t];
      tokens = std::max(tokens, count);
      pairs += count * count;
    }
  }
  const int64_t head_bytes = 2 * tokens * head_dim * (dtype == cpu::DType::bf16 ? 2 : 4);
  const int64_t group = group_of(tiles, heads, head_bytes);
  const FlashSplit split =
      flash_split(tiles * (heads / group), pairs * heads * head_dim, (tokens + 31) / 32);
  const Tensor queries = with_channels(q), keys = with_channels(k), values = with_channels(v);
  const cpu::TileAttentionArgs args = {
      .flash =
          {
              .dtype = dtype,
              .q = flash_tensor(queries, axes - 4, axes - 3, axes - 2),
              .k = flash_tensor(keys, axes - 4, axes - 3, axes - 2),
              .v = flash_tensor(values, axes - 4, axes - 3, axes - 2),
              .out = out.mutable_data_ptr(),
              .heads = heads,
              .head_dim = head_dim,
              .scale = flash_scale(scale, head_dim),
          },
      .tiles = tiles,
      .tokens = tokens,
      .starts = lengths ? starts.data() : nullptr,
      .group = group,
      .parts = split.parts,
  };
  flash_run(split.tasks, bytes(args), [&](const cpu::FlashTask& task) { kernel(args, task); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def("tile_attention(Tensor q, Tensor k, Tensor v, Tensor? lengths, float? scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("tile_attention", TORCH_BOX(&tile_attention));
}

}  // namespace flashvl
