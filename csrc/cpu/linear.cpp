// The matrix product y = epilogue(norm(x) w) of linear, swiglu_mlp and gelu_mlp, for any number of
// rows.
//
// Few rows are bound by the bytes of the weights: few_rows.h. Many rows are bound by FLOPs, and by
// the caches that have to bring the operands: this file cuts the product so that they can, after
// Goto and van de Geijn (ACM TOMS 34, 2008). A task owns a range of weight panels and reads each
// once a block of rows. A block of rows times a chunk of columns of the activations stays in the
// second-level cache; of two panels, as many columns as the inner block wants (Block::kSteps) stay
// near while the rows of the block pass by.

#include "linear.h"

#include "matrix/epilogue.h"
#include "matrix/few_rows.h"
#include "matrix/panel_source.h"
#include "matrix/row_layout.h"
#include "matrix/row_norm.h"
#include "matrix/tile_block.h"
#include "matrix/vector_block.h"
#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Of 2 MiB of second-level cache: what a block of activations may take, and what the sums of a
// group of units may, so that weights and results pass by without pushing them out.
constexpr int64_t kBlockBytes = 1280 << 10, kGroupBytes = 512 << 10;
constexpr int64_t kMaxBlockRows = 512;
constexpr int64_t kLine = 64;

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

// Calls f(T{}) with the type behind a dtype.
template <class Function>
auto with_type(DType dtype, Function f) {
  switch (dtype) {
    case DType::bf16:
      return f(BF16{});
    case DType::f16:
      return f(F16{});
    default:
      return f(float{});
  }
}

bool is_pair(const ProductArgs& args) { return args.activation == Activation::swiglu; }

int64_t panels_of(const Weights& w) { return (w.rows + kPanel - 1) / kPanel; }

// The workspace of a task: two scratch panels, then the sums of a group of units.
template <class Block>
int64_t scratch_panels_bytes() {
  return 2 * kMaxColumns * kPanel * static_cast<int64_t>(sizeof(typename Block::Element));
}

template <class Block>
int64_t unit_sums(const ProductPlan& plan) {
  const int64_t blocks = round_up(plan.block_rows, Block::kRows) / Block::kRows;
  return (blocks > 2 ? blocks : 2) * Block::kSums;
}

ProductPlan plan_few(const ProductArgs& args) {
  ProductPlan plan = {};
  plan.few = true;
  plan.units = panels_of(args.w);
  plan.packed_rows = args.rows;
  // Behind the prepared rows there is room for one row in fp32.
  const int64_t row = args.w.columns * static_cast<int64_t>(sizeof(float));
  plan.packed_bytes = args.rows * few_rows_bytes(args.w) + round_up(row, kLine);
  plan.workspace_bytes = round_up(few_rows_workspace(args.w), kLine);
  return plan;
}

template <class Block>
ProductPlan plan_many(const ProductArgs& args) {
  constexpr int64_t kElement = sizeof(typename Block::Element);
  const int64_t steps = depth_steps(args.w.columns), panels = panels_of(args.w);
  const int64_t blocks = (args.rows + kMaxBlockRows - 1) / kMaxBlockRows;
  ProductPlan plan = {};
  plan.units = is_pair(args) ? panels : (panels + 1) / 2;
  plan.packed_rows = round_up(args.rows, Block::kRows);
  plan.packed_bytes =
      plan.packed_rows / Block::kRows * Block::layout(args.w.columns).block_stride * kElement;
  plan.block_rows = round_up((args.rows + blocks - 1) / blocks, Block::kRows);
  const int64_t bytes = plan.block_rows * steps * kDepth * kElement;
  const int64_t chunks = (bytes + kBlockBytes - 1) / kBlockBytes;
  plan.chunk_steps = (steps + chunks - 1) / chunks;
  if (chunks > 1 && plan.chunk_steps > Block::kSteps) {
    plan.chunk_steps = round_up(plan.chunk_steps, Block::kSteps);
  }
  plan.inner_steps = chunks == 1 ? Block::kWholeSteps : Block::kSteps;
  const int64_t sums = unit_sums<Block>(plan) * static_cast<int64_t>(sizeof(float));
  const int64_t fit = kGroupBytes / sums > 1 ? kGroupBytes / sums : 1;
  plan.group_units = plan.chunk_steps < steps ? fit : 1;
  plan.workspace_bytes = scratch_panels_bytes<Block>() + plan.group_units * sums;
  return plan;
}

template <class T, class Element, class Layout>
void pack_row(const PackArgs& args, const T* x, int64_t row, const Layout& layout) {
  const T* weight = static_cast<const T*>(args.norm_weight);
  const T* bias = static_cast<const T*>(args.norm_bias);
  Element* out = static_cast<Element*>(args.packed);
  const int64_t columns = args.w.columns;
  const NormalisedRow<T> values(x, columns, weight, bias, args.eps);
  for (int64_t c = 0; c < depth_steps(columns) * kDepth; c += kLanes) {
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

template <class T>
void pack_few(const PackArgs& args) {
  const int64_t columns = args.w.columns, bytes = few_rows_bytes(args.w);
  char* prepared = static_cast<char*>(args.packed);
  float* values = reinterpret_cast<float*>(prepared + args.rows * bytes);
  const T* weight = static_cast<const T*>(args.norm_weight);
  const T* bias = static_cast<const T*>(args.norm_bias);
  for (int64_t r = 0; r < args.rows; ++r) {
    if (args.floats) {
      const float* x = static_cast<const float*>(args.x) + r * args.x_stride;
      prepare_row(args.w, args.dtype, x, prepared + r * bytes);
      continue;
    }
    const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
    const NormalisedRow<T> row(x, columns, weight, bias, args.eps);
    for_lanes(columns, [&](int64_t c, int64_t n) { store_up_to(values + c, row.at(c, n), n); });
    prepare_row(args.w, args.dtype, values, prepared + r * bytes);
  }
}

template <class T>
void product_few(const ProductArgs& args, int64_t begin, int64_t end, void* workspace) {
  const int rows = static_cast<int>(args.rows);
  float sums[kFewRows * kPanel], up[kFewRows * kPanel] = {};
  for (int64_t panel = begin; panel < end; ++panel) {
    panel_dot(args.w, args.dtype, panel, args.packed, rows, sums, workspace);
    if (is_pair(args)) {
      panel_dot(args.up, args.dtype, panel, args.packed, rows, up, workspace);
    }
    const Finish<T, float, RowLayout<1>> finish(args, {}, panel * kPanel, 1);
    for (int r = 0; r < rows; ++r) finish(r, sums + r * kPanel, up + r * kPanel);
  }
}

// One task's share of a product of many rows: walks blocks of rows, groups of units, chunks of
// columns, units, and steps that stay in the first-level cache.
template <class T>
class Many {
  using Block = typename BlockFor<T>::type;
  using Element = typename Block::Element;

 public:
  Many(const ProductArgs& args, void* workspace)
      : args_(args),
        plan_(args.plan),
        steps_(depth_steps(args.w.columns)),
        layout_(Block::layout(args.w.columns)),
        next_(Block::layout(args.w.rows)),
        pair_(is_pair(args)),
        unit_sums_(unit_sums<Block>(args.plan)),
        scratch_(static_cast<Element*>(workspace)),
        sums_(reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                       scratch_panels_bytes<Block>())) {}

  void run(int64_t begin, int64_t end) {
    const typename Block::Scope scope;
    for (int64_t row = 0; row < args_.rows; row += plan_.block_rows) {
      first_row_ = row;
      last_row_ =
          row + plan_.block_rows < plan_.packed_rows ? row + plan_.block_rows : plan_.packed_rows;
      for (int64_t group = begin; group < end; group += plan_.group_units) {
        const int64_t rest = end - group;
        multiply_group(group, rest < plan_.group_units ? rest : plan_.group_units);
      }
    }
    if (args_.output == Output::packed && end == plan_.units) pad_result();
  }

 private:
  void multiply_group(int64_t group, int64_t units) {
    for (int64_t chunk = 0; chunk < steps_; chunk += plan_.chunk_steps) {
      const int64_t stop = chunk + plan_.chunk_steps < steps_ ? chunk + plan_.chunk_steps : steps_;
      for (int64_t u = 0; u < units; ++u) {
        for (int64_t step = chunk; step < stop; step += plan_.inner_steps) {
          const int64_t rest = stop - step;
          multiply_unit(group + u, step, rest < plan_.inner_steps ? rest : plan_.inner_steps,
                        sums_ + u * unit_sums_);
        }
      }
    }
  }

  // Every row of the block times one unit's panels, a few steps deep. While a block of rows is
  // multiplied, the rows before it are finished, their weights' successors fetched, and the lines
  // that its own results will go to.
  void multiply_unit(int64_t unit, int64_t step, int64_t steps, float* sums) {
    const int64_t left = pair_ ? unit : 2 * unit, right = pair_ ? unit : 2 * unit + 1;
    const Weights& second = pair_ ? args_.up : args_.w;
    const bool there = right < panels_of(args_.w);
    const int64_t first = step * kDepth, columns = steps * kDepth;
    const Element* l = panel_at(args_.w, left, first, columns, scratch_);
    const Element* r = l;
    if (there) r = panel_at(second, right, first, columns, scratch_ + kMaxColumns * kPanel);

    const bool last = step + steps == steps_, whole = steps == steps_;
    const Finish<T, Element, RowLayout<Block::kRows>> finish(args_, next_, left * kPanel,
                                                             pair_ ? 1 : 2);
    const Ahead ahead = ahead_of(left, there ? right : left, first, columns);
    const Element* a = static_cast<const Element*>(args_.packed) + step * layout_.step_stride;
    const float* done = nullptr;  // the sums of the block of rows before
    for (int64_t row = first_row_; row < last_row_; row += Block::kRows) {
      const auto between = [&](int64_t s) {
        const int64_t begin = s * Block::kRows / steps, end = (s + 1) * Block::kRows / steps;
        ahead.fetch((row - first_row_) / Block::kRows * steps + s);
        if (!last) return;
        for (int64_t i = begin; i < end; ++i) finish.fetch(row + i);
        if (done != nullptr) finish_rows(finish, row - Block::kRows, done, begin, end);
      };
      // Sums that are whole go through two buffers in the first-level cache.
      float* const own = whole ? sums + (row - first_row_) / Block::kRows % 2 * Block::kSums
                               : sums + (row - first_row_) / Block::kRows * Block::kSums;
      Block::multiply(a + row / Block::kRows * layout_.block_stride, layout_, l, r, steps,
                      step == 0, own, own + Block::kSums, between);
      if (last) Block::add_pairs(own);
      done = own;
    }
    if (last) finish_rows(finish, last_row_ - Block::kRows, done, 0, Block::kRows);
  }

  // Rows [begin, end) of the block that starts at row `first`.
  template <class Finish>
  void finish_rows(const Finish& finish, int64_t first, const float* sums, int64_t begin,
                   int64_t end) const {
    if (end > args_.rows - first) end = args_.rows - first;
    for (int64_t r = begin; r < end; ++r) {
      finish(first + r, Block::sums_at(sums, r, 0), Block::sums_at(sums, r, 1));
    }
  }

  // The weights behind those of this call, which the next one reads: a panel's columns lie
  // together, and panels too. A share of their lines is fetched with each step; left to the first
  // rows that need them they would be waited for, since 16 KiB take as long to come from memory
  // as 80 steps to compute.
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

  Ahead ahead_of(int64_t left, int64_t right, int64_t first, int64_t columns) const {
    const Weights& w = args_.w;
    if (!w.panels) return {nullptr, nullptr, 0, 0};
    const Weights& second = pair_ ? args_.up : w;
    const int64_t calls = (last_row_ - first_row_) / Block::kRows * (columns / kDepth);
    const int64_t bytes = panel_bytes(w, columns);
    const int64_t share = round_up((bytes + calls - 1) / calls, kLine);
    const bool ends = first + columns >= steps_ * kDepth;
    // Behind a panel lies the next one; where a unit is two panels, that is the unit's own second.
    const int64_t skip = ends && !pair_ ? panel_bytes(w, steps_ * kDepth) : 0;
    return {panel_start(w, left) + panel_bytes(w, first + columns) + skip,
            panel_start(second, right) + panel_bytes(second, first + columns) + skip, bytes, share};
  }

  // Zeros in the columns and rows of the packed result that nobody computes.
  void pad_result() {
    Element* out = static_cast<Element*>(args_.out);
    const int64_t columns = args_.w.rows, padded = depth_steps(columns) * kDepth;
    for (int64_t row = 0; row < plan_.packed_rows; ++row) {
      const int64_t first = row < args_.rows ? columns : 0;
      for (int64_t c = first; c < padded; ++c) out[next_.at(row, c)] = Element{};
    }
  }

  const ProductArgs& args_;
  const ProductPlan& plan_;
  const int64_t steps_;
  const RowLayout<Block::kRows> layout_, next_;
  const bool pair_;
  const int64_t unit_sums_;
  Element* const scratch_;
  float* const sums_;
  int64_t first_row_ = 0, last_row_ = 0;
};

}  // namespace

ProductPlan product_plan(const ProductArgs& args) {
  if (args.rows <= kFewRows) return plan_few(args);
  return with_type(args.dtype, [&](auto type) {
    return plan_many<typename BlockFor<decltype(type)>::type>(args);
  });
}

void pack_rows(const PackArgs& args, int64_t begin, int64_t end) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    return args.plan.few ? pack_few<T>(args) : pack_many<T>(args, begin, end);
  });
}

void product(const ProductArgs& args, int64_t begin, int64_t end, void* workspace) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.plan.few) return product_few<T>(args, begin, end, workspace);
    Many<T>(args, workspace).run(begin, end);
  });
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
