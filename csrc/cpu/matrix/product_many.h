// The matrix product of linear, swiglu_mlp and gelu_mlp for many rows.
//
// Bound by FLOPs, and by the caches that have to bring the operands: this file cuts the product so
// that they can, after Goto and van de Geijn (ACM TOMS 34, 2008). A task owns a range of weight
// panels and reads each once a block of rows. A block of rows times a chunk of columns of the
// activations stays in the second-level cache; of two panels, as many columns as the inner block
// wants (Block::kSteps) stay near while the rows of the block pass by. Where a product has several
// blocks of rows, threads share the rows: each then reads all the weights once, at about the same
// time as the others.
#pragma once

#include <type_traits>

#include "epilogue.h"
#include "normalised_row.h"
#include "panel_source.h"
#include "product_parts.h"
#include "row_layout.h"
#include "tile_block.h"
#include "vector_block.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Of 2 MiB of second-level cache: what a block of activations may take, and what the sums of a
// group of units may, so that weights and results pass by without pushing them out. A block of 512
// rows of 1152 channels, 1.2 MiB, was slower than one of 320 by a tenth to a quarter.
constexpr int64_t kBlockBytes = 1280 << 10, kGroupBytes = 512 << 10;
constexpr int64_t kMaxBlockRows = 320;

#if defined(FLASHVL_LEVEL_amx)
using BlockOfBF16 = TileBlock;
#elif defined(FLASHVL_LEVEL_avx512_bf16)
using BlockOfBF16 = Bf16Block;
#else
using BlockOfBF16 = FloatBlock;
#endif

template <class T>
struct BlockFor {
  using type = FloatBlock;
};

template <>
struct BlockFor<BF16> {
  using type = BlockOfBF16;
};

// The workspace of a task: two scratch panels, then the sums of plan.sum_units units.
template <class Block>
int64_t scratch_panels_bytes() {
  return 2 * kMaxColumns * kPanel * static_cast<int64_t>(sizeof(typename Block::Element));
}

// The largest number of parts that divides the threads and gives each part a block of rows.
inline int64_t row_parts_of(int64_t threads, int64_t blocks) {
  int64_t parts = blocks < threads ? blocks : threads;
  while (parts > 1 && threads % parts != 0) --parts;
  return parts > 1 ? parts : 1;
}

template <class Block>
ProductPlan plan_many(const ProductArgs& args) {
  constexpr int64_t kElement = sizeof(typename Block::Element);
  const int64_t steps = depth_steps(args.w.columns), panels = panels_of(args.w);
  ProductPlan plan = {};
  plan.units = is_gated(args) ? panels : (panels + 1) / 2;
  plan.packed_rows = round_up(args.rows, Block::kRows);
  plan.packed_bytes =
      plan.packed_rows / Block::kRows * Block::layout(args.w.columns).block_stride * kElement;
  plan.row_parts = row_parts_of(args.threads, (args.rows + kMaxBlockRows - 1) / kMaxBlockRows);
  const int64_t ranges = args.threads / plan.row_parts;
  plan.tasks = plan.row_parts * (ranges < plan.units ? ranges : plan.units);
  const int64_t rows =
      (plan.packed_rows / Block::kRows + plan.row_parts - 1) / plan.row_parts * Block::kRows;
  const int64_t blocks = (rows + kMaxBlockRows - 1) / kMaxBlockRows;
  plan.block_rows = round_up((rows + blocks - 1) / blocks, Block::kRows);
  // Calls of the inner block that a row of sums takes, alike; and how many of them a chunk.
  const int64_t pieces = (steps + Block::kSteps - 1) / Block::kSteps;
  plan.inner_steps = (steps + pieces - 1) / pieces;
  const int64_t bytes = plan.block_rows * plan.inner_steps * kDepth * kElement;
  const int64_t fit = kBlockBytes / bytes > 1 ? kBlockBytes / bytes : 1;
  const int64_t chunks = (pieces + fit - 1) / fit;
  plan.chunk_steps = (pieces + chunks - 1) / chunks * plan.inner_steps;
  const int64_t sums =
      plan.block_rows / Block::kRows * Block::kSums * static_cast<int64_t>(sizeof(float));
  const int64_t kept = kGroupBytes / sums > kFinishUnits ? kGroupBytes / sums : kFinishUnits;
  plan.sum_units = chunks > 1 ? kept : kFinishUnits;
  plan.group_units = chunks > 1 ? kept : plan.units;
  // A block of rows has units to finish once in kFinishUnits passes, of all pieces of a chunk each.
  const int64_t passes = kFinishUnits * (plan.chunk_steps / plan.inner_steps);
  plan.finish_rows = (Block::kRows + passes - 1) / passes;
  plan.workspace_bytes = scratch_panels_bytes<Block>() + plan.sum_units * sums;
  return plan;
}

template <class T, class Element, class Layout>
void pack_row(const PackArgs& args, const T* x, int64_t row, const Layout& layout) {
  const T* weight = static_cast<const T*>(args.norm_weight);
  const T* bias = static_cast<const T*>(args.norm_bias);
  Element* out = static_cast<Element*>(args.packed);
  const int64_t columns = args.w.columns, padded = depth_steps(columns) * kDepth;
  const NormalisedRow<T> values(x, columns, weight, bias, args.eps);
  int64_t c = 0;
  for (; c + kDepth <= columns; c += kDepth) {
    Element* step = out + layout.at(row, c);
    if (std::is_same_v<T, Element> && weight == nullptr) {
      __builtin_memcpy(step, x + c, kDepth * sizeof(T));
      continue;
    }
#pragma GCC unroll 2
    for (int64_t i = 0; i < kDepth; i += 2 * kLanes) {
      store_both(step + i, values.at(c + i, kLanes), values.at(c + i + kLanes, kLanes));
    }
  }
  for (; c < padded; c += kLanes) {
    const int64_t rest = columns - c, n = rest < kLanes ? rest : kLanes;
    store(out + layout.at(row, c), n > 0 ? values.at(c, n) : zero());
  }
}

template <class T>
void pack_many(const PackArgs& args, int64_t begin, int64_t end) {
  using Block = typename BlockFor<T>::type;
  using Element = typename Block::Element;
  const auto layout = Block::layout(args.w.columns);
  for (int64_t row = begin; row < end; ++row) {
    if (row < args.rows) {
      pack_row<T, Element>(args, static_cast<const T*>(args.x) + row * args.x_stride, row, layout);
      continue;
    }
    for (int64_t c = 0; c < depth_steps(args.w.columns) * kDepth; c += kLanes) {
      store(static_cast<Element*>(args.packed) + layout.at(row, c), zero());
    }
  }
}

// One task's share of a product of many rows: walks blocks of rows; of each, the pieces that the
// units' panels are cut into.
//
// Sums are finished behind the multiplication, a row or two a step, when a row has those of
// kFinishUnits neighbouring units: its results then go to memory four lines at a time. One line a
// unit would touch the page of every row for each unit, and there are more of those than the
// processor keeps translations for.
template <class T>
class Many {
  using Block = typename BlockFor<T>::type;
  using Element = typename Block::Element;
  using Finishing = Finish<T, Element, RowLayout<Block::kRows>>;

 public:
  Many(const ProductArgs& args, int64_t task, void* workspace)
      : args_(args),
        plan_(args.plan),
        steps_(depth_steps(args.w.columns)),
        layout_(Block::layout(args.w.columns)),
        next_(Block::layout(args.w.rows)),
        pair_(is_gated(args)),
        ranges_(plan_.tasks / plan_.row_parts),
        blocks_(plan_.packed_rows / Block::kRows, task / ranges_, plan_.row_parts),
        units_(plan_.units, task % ranges_, ranges_),
        scratch_(static_cast<Element*>(workspace)),
        sums_(reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                       scratch_panels_bytes<Block>())) {}

  void run() {
    const typename Block::Scope scope;
    const int64_t block_rows = plan_.block_rows / Block::kRows;
    for (int64_t block = blocks_.begin; block < blocks_.end; block += block_rows) {
      first_ = block;
      last_ = block + block_rows < blocks_.end ? block + block_rows : blocks_.end;
      const Piece start = {units_.begin, 0, units_.begin, 0};
      for (Piece piece = start; piece.group < units_.end;) {
        const Piece next = after(piece);
        multiply(piece, next.group < units_.end ? next : start);
        piece = next;
      }
      finish(Block::kRows);  // the next block of rows keeps its sums in the same memory
    }
    if (args_.output == Output::packed && units_.end == plan_.units) pad_result();
  }

 private:
  // Steps of one unit's panels that stay in the first-level cache while the rows pass by. Sums of
  // the units of a group are kept from one chunk of columns to the next.
  struct Piece {
    int64_t group, chunk, unit, step;
  };

  int64_t group_end(const Piece& p) const {
    return p.group + plan_.group_units < units_.end ? p.group + plan_.group_units : units_.end;
  }
  int64_t chunk_end(const Piece& p) const {
    return p.chunk + plan_.chunk_steps < steps_ ? p.chunk + plan_.chunk_steps : steps_;
  }
  int64_t steps_of(const Piece& p) const {
    const int64_t rest = chunk_end(p) - p.step;
    return rest < plan_.inner_steps ? rest : plan_.inner_steps;
  }

  Piece after(Piece p) const {
    p.step += plan_.inner_steps;
    if (p.step < chunk_end(p)) return p;
    p.step = p.chunk;
    if (++p.unit < group_end(p)) return p;
    p.unit = p.group;
    p.step = p.chunk += plan_.chunk_steps;
    if (p.chunk < steps_) return p;
    p.unit = p.group = group_end(p);
    p.step = p.chunk = 0;
    return p;
  }

  float* sums_of(int64_t unit, int64_t block) const {
    const int64_t slot = (unit - units_.begin) % plan_.sum_units;
    return sums_ + (slot * (plan_.block_rows / Block::kRows) + block - first_) * Block::kSums;
  }

  // The panels of a unit. One that the matrix does not have is the other once more.
  int64_t left_of(int64_t unit) const { return pair_ ? unit : 2 * unit; }
  int64_t right_of(int64_t unit) const {
    if (pair_) return unit;
    return 2 * unit + 1 < panels_of(args_.w) ? 2 * unit + 1 : 2 * unit;
  }
  const Weights& right_weights() const { return pair_ ? args_.up : args_.w; }

  // Every block of rows times a piece. Meanwhile rows that have their sums are finished, and the
  // weights of the next piece fetched.
  void multiply(const Piece& piece, const Piece& next) {
    const int64_t steps = steps_of(piece), unit = piece.unit;
    const int64_t first = piece.step * kDepth, columns = steps * kDepth;
    const Element* left = panel_at(args_.w, left_of(unit), first, columns, scratch_);
    const Element* right = left;
    if (pair_ || right_of(unit) != left_of(unit)) {
      right = panel_at(right_weights(), right_of(unit), first, columns,
                       scratch_ + kMaxColumns * kPanel);
    }
    const bool last = piece.step + steps == steps_;
    const Ahead ahead = ahead_of(next, (last_ - first_) * steps);
    const Element* a = static_cast<const Element*>(args_.packed) + piece.step * layout_.step_stride;
    int64_t step = 0, due = 0;
    for (int64_t block = first_; block < last_; ++block) {
      if (waiting_.block == block) finish(Block::kRows);
      float* const sums = sums_of(unit, block);
      Block::multiply(a + block * layout_.block_stride, layout_, left, right, steps,
                      piece.step == 0, sums, sums + Block::kSums, [&](int64_t) {
                        ahead.fetch(step++);
                        due += plan_.finish_rows;
                        if (due < steps) return;
                        finish(due / steps);
                        due %= steps;
                      });
      if (!last) continue;
      Block::add_pairs(sums);
      // Blocks take turns at which units they finish together, so that there is always some work.
      const int64_t since = (unit - units_.begin + block) % kFinishUnits;
      if (since == kFinishUnits - 1 || unit + 1 == group_end(piece)) {
        const int64_t begin = unit - since > piece.group ? unit - since : piece.group;
        wait(begin, static_cast<int>(unit + 1 - begin), block);
      }
    }
  }

  // Rows of a block whose sums are whole.
  struct Waiting {
    Finishing finish;
    int64_t block = -1;
    int64_t row = 0, end = 0;
    const float* sums[kFinishUnits] = {};
  };
  static constexpr int64_t kFetchRows = 3;  // ahead of the row being finished

  void wait(int64_t unit, int units, int64_t block) {
    finish(Block::kRows);
    const int64_t row = block * Block::kRows, end = row + Block::kRows;
    waiting_.finish = Finishing(args_, next_, unit, units);
    waiting_.block = block;
    waiting_.row = row;
    waiting_.end = end < args_.rows ? end : args_.rows;
    for (int i = 0; i < units; ++i) waiting_.sums[i] = sums_of(unit + i, block);
    for (int64_t i = 0; i < kFetchRows; ++i) waiting_.finish.fetch(row + i);
  }

  // Finishes up to `count` of the waiting rows.
  __attribute__((noinline)) void finish(int64_t count) {
    if (waiting_.block < 0) return;
    const int64_t begin = waiting_.row, first = waiting_.block * Block::kRows;
    const int64_t end = begin + count < waiting_.end ? begin + count : waiting_.end;
    for (int64_t row = begin; row < end; ++row) waiting_.finish.fetch(row + kFetchRows);
    waiting_.finish(begin, end, [&](int64_t row, int i, int j) {
      return Block::sums_at(waiting_.sums[i], row - first, j);
    });
    waiting_.row = end;
    if (end >= waiting_.end) waiting_.block = -1;
  }

  // The weights of the next piece, fetched a share of their lines with each step. Left to the
  // first rows that need them they would be waited for: 16 KiB take as long to come from memory as
  // 80 steps to compute.
  struct Ahead {
    const char* left;
    const char* right;
    int64_t bytes;  // of each
    int64_t share;  // bytes a step

    void fetch(int64_t step) const {
      const int64_t begin = step * share, end = begin + share < bytes ? begin + share : bytes;
      for (int64_t at = begin; at < end; at += kLine) {
        __builtin_prefetch(left + at, 0, 2);
        __builtin_prefetch(right + at, 0, 2);
      }
    }
  };

  Ahead ahead_of(const Piece& next, int64_t calls) const {
    const Weights& w = args_.w;
    if (!w.panels) return {nullptr, nullptr, 0, 0};
    const int64_t start = panel_bytes(w, next.step * kDepth);
    const int64_t bytes = panel_bytes(w, steps_of(next) * kDepth);
    return {panel_start(w, left_of(next.unit)) + start,
            panel_start(right_weights(), right_of(next.unit)) + start, bytes,
            round_up((bytes + calls - 1) / calls, kLine)};
  }

  // Zeros in the columns and rows of the packed result that nobody computes.
  void pad_result() {
    Element* out = static_cast<Element*>(args_.out);
    const int64_t columns = args_.w.rows, padded = depth_steps(columns) * kDepth;
    for (int64_t row = blocks_.begin * Block::kRows; row < blocks_.end * Block::kRows; ++row) {
      const int64_t first = row < args_.rows ? columns : 0;
      for (int64_t c = first; c < padded; ++c) out[next_.at(row, c)] = Element{};
    }
  }

  const ProductArgs& args_;
  const ProductPlan& plan_;
  const int64_t steps_;
  const RowLayout<Block::kRows> layout_, next_;
  const bool pair_;
  const int64_t ranges_;
  const Range blocks_, units_;
  Element* const scratch_;
  float* const sums_;
  int64_t first_ = 0, last_ = 0;  // the blocks of rows that stay in the cache
  Waiting waiting_;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
