// The backward pass of linear and swiglu_mlp in fp32, for weights that stay in the cache.
//
// Bound by FLOPs: four products of a model 128 channels wide are done before one of its
// intermediate results has been written to memory and read again. So a task takes a few hundred
// rows at a time through all of them: normalise, multiply, gate, and both products of the gradient.
// What it sums over rows (the weights' gradients) it keeps to itself until the end.
//
// flashvl_kernels/gradients/ has the formulas.

#include "product_backward.h"

#include "matrix/dense_product.h"
#include "norm_backward_row.h"
#include "slopes.h"

#if !defined(FLASHVL_LEVEL_scalar)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

using Args = ProductBackwardArgs;

constexpr int64_t kFloat = sizeof(float);

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

bool has_inner(const Args& a) { return a.activation != Activation::none; }
bool has_rows(const Args& a) { return a.dx || a.dnorm_weight || a.dnorm_bias; }

// The weights as right operands: of the inner rows, of their gradient, of that of x.
MatrixSource inner_weights(const Args& a) { return {a.w, a.w_stride, 1, a.outputs, a.columns}; }
MatrixSource down_weights(const Args& a) { return {a.down, 1, a.down_stride, a.width, a.columns}; }
MatrixSource outer_weights(const Args& a) { return {a.w, 1, a.w_stride, a.columns, a.outputs}; }

// Where they lie, packed.
template <class P>
struct Packed {
  MatrixSource source[3];
  int64_t start[4];   // in bytes
  int64_t blocks[4];  // before each

  explicit Packed(const Args& a) : source{inner_weights(a), down_weights(a), outer_weights(a)} {
    const bool wanted[3] = {has_inner(a), a.down != nullptr, has_rows(a)};
    start[0] = blocks[0] = 0;
    for (int i = 0; i < 3; ++i) {
      const MatrixSource& s = source[i];
      start[i + 1] = start[i] + (wanted[i] ? P::operand_bytes(s.rows, s.columns) : 0);
      blocks[i + 1] = blocks[i] + (wanted[i] ? operand_blocks<P>(s.rows) : 0);
    }
  }
  typename P::Element* at(const Args& a, int i) const {
    return reinterpret_cast<typename P::Element*>(a.packed + start[i]);
  }
  typename P::Operand operand(const Args& a, int i) const { return {source[i], at(a, i)}; }
};

// Where a task's rows and sums lie, in bytes from its start.
template <class P>
struct Memory {
  static constexpr int64_t kRows = P::kChainRows;
  int64_t n, inner, hidden, left, right, dw, ddown, dbias, dnorm_weight, dnorm_bias, bytes;

  explicit Memory(const Args& a) : bytes(0) {
    const int64_t k = padded<P>(a.columns), o = padded<P>(a.outputs), f = padded<P>(a.width);
    n = take(kRows * k * kFloat);
    inner = take(has_inner(a) ? kRows * o * kFloat : 0);
    hidden = take(a.down ? kRows * f * kFloat : 0);
    const int64_t wide = larger(a.columns, a.outputs);
    left = take(larger(P::operand_bytes(kRows, wide), P::operand_bytes(wide, kRows)));
    right = take(P::operand_bytes(larger(a.columns, a.width), kRows));
    dw = take(a.dw ? o * k * kFloat : 0);
    ddown = take(a.ddown ? k * f * kFloat : 0);
    dbias = take(a.dbias ? ColumnSums::bytes(a.outputs) : 0);
    dnorm_weight = take(ColumnSums::bytes(a.columns));
    dnorm_bias = take(ColumnSums::bytes(a.columns));
  }

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 64);
    return at;
  }
};

// A matrix of fp32 rows.
struct Matrix {
  const float* data;
  int64_t stride;
};

template <class P>
class Task {
  static constexpr int64_t kRows = P::kChainRows;
  using Element = typename P::Element;
  using Operand = typename P::Operand;

 public:
  Task(const Args& args, int64_t task)
      : a_(args),
        at_(args),
        weights_(args),
        memory_(args.memory + task * at_.bytes),
        begin_(args.rows * task / args.tasks),
        end_(args.rows * (task + 1) / args.tasks) {
    if (a_.dbias) dbias_.start(memory_ + at_.dbias, a_.outputs);
    dnorm_weight_.start(memory_ + at_.dnorm_weight, a_.columns);
    dnorm_bias_.start(memory_ + at_.dnorm_bias, a_.columns);
  }

  void run() {
    if (begin_ == end_) {
      zero_sums(at_.dw, a_.dw, a_.outputs, a_.columns);
      zero_sums(at_.ddown, a_.ddown, a_.columns, a_.width);
    }
    for (row_ = begin_; row_ < end_; row_ += kRows) {
      count_ = end_ - row_ < kRows ? end_ - row_ : kRows;
      const Matrix n = normalised();
      const Matrix dy = {a_.dy + row_ * a_.dy_stride, a_.dy_stride};
      const Matrix dz = gradient_of_products(n, dy);
      if (a_.dbias) add_rows(dz);
      if (a_.dw) sum_products(dz, a_.outputs, n, a_.columns, at_.dw, padded<P>(a_.columns));
      if (has_rows(a_)) gradient_of_rows(dz, dy);
    }
    if (a_.dbias) dbias_.flush();
    dnorm_weight_.flush();
    dnorm_bias_.flush();
  }

 private:
  float* floats(int64_t at) const { return reinterpret_cast<float*>(memory_ + at); }
  Element* parts(int64_t at) const { return reinterpret_cast<Element*>(memory_ + at); }

  void zero_sums(int64_t at, const float* wanted, int64_t rows, int64_t columns) {
    if (!wanted) return;
    float* sums = floats(at);
    for (int64_t i = 0; i < padded<P>(rows) * padded<P>(columns); ++i) sums[i] = 0.0f;
  }

  Matrix normalised() {
    const float* x = a_.x + row_ * a_.x_stride;
    if (!a_.norm_weight) return {x, a_.x_stride};
    const int64_t stride = padded<P>(a_.columns);
    const RowNorm<float> norm = {a_.norm_weight, a_.norm_bias, a_.eps};
    for (int64_t r = 0; r < count_; ++r) {
      normalise(x + r * a_.x_stride, floats(at_.n) + r * stride, a_.columns, norm);
    }
    return {floats(at_.n), stride};
  }

  // rows [count_, columns] times one of the weights.
  Matrix multiply(Matrix rows, int64_t columns, int weights, int64_t to, int64_t outputs) {
    const MatrixSource source = {rows.data, rows.stride, 1, count_, columns};
    const Operand left = pack_all<P, false>(source, parts(at_.left));
    const int64_t stride = padded<P>(outputs);
    P::multiply_operands(left, weights_.operand(a_, weights), floats(to), stride, false);
    return {floats(to), stride};
  }

  // The sums at `to` += leftᵀ right, over the rows.
  void sum_products(Matrix left, int64_t rows, Matrix right, int64_t columns, int64_t to,
                    int64_t stride) {
    const Operand a =
        pack_all<P, false>({left.data, 1, left.stride, rows, count_}, parts(at_.left));
    const Operand b =
        pack_all<P, true>({right.data, 1, right.stride, columns, count_}, parts(at_.right));
    P::multiply_operands(a, b, floats(to), stride, row_ > begin_);
  }

  // The gradient of n wᵀ + bias.
  Matrix gradient_of_products(Matrix n, Matrix dy) {
    if (!has_inner(a_)) return dy;
    const Matrix z = multiply(n, a_.columns, 0, at_.inner, a_.outputs);
    if (!a_.down) {
      for (int64_t r = 0; r < count_; ++r) undo_activation(floats(at_.inner) + r * z.stride, dy, r);
      return z;
    }
    const Matrix h = multiply(dy, a_.columns, 1, at_.hidden, a_.width);
    for (int64_t r = 0; r < count_; ++r) {
      undo_gate(floats(at_.inner) + r * z.stride, floats(at_.hidden) + r * h.stride);
    }
    if (a_.ddown) sum_products(dy, a_.columns, h, a_.width, at_.ddown, padded<P>(a_.width));
    return z;
  }

  // z becomes dy activation'(z + bias).
  void undo_activation(float* z, Matrix dy, int64_t r) const {
    const float* grad = dy.data + r * dy.stride;
    const auto each = [&](auto slope) {
      over_columns(a_.outputs, [&](int64_t c, auto n) {
        F32 value = load_at(z + c, n);
        if (a_.bias) value = value + load_at(a_.bias + c, n);
        store_at(z + c, slope(value) * load_at(grad + c, n), n);
      });
    };
    if (a_.activation == Activation::gelu) {
      each([](F32 v) { return gelu_erf_slope(v); });
    } else if (a_.activation == Activation::gelu_tanh) {
      each([](F32 v) { return gelu_tanh_slope(v); });
    } else {
      each([](F32 v) { return silu_slope(v, both_sigmoids(v)); });
    }
  }

  // gate and up become their gradients; dh, the gradient of what they make, becomes that itself.
  void undo_gate(float* gate, float* dh) const {
    float* up = gate + a_.width;
    over_columns(a_.width, [&](int64_t c, auto n) {
      const F32 g = load_at(gate + c, n), u = load_at(up + c, n), grad = load_at(dh + c, n);
      const Sigmoid s = both_sigmoids(g);
      const F32 gated = g * s.value;
      store_at(gate + c, grad * u * silu_slope(g, s), n);
      store_at(up + c, grad * gated, n);
      store_at(dh + c, gated * u, n);
    });
  }

  void add_rows(Matrix dz) {
    for (int64_t r = 0; r < count_; ++r) {
      const float* row = dz.data + r * dz.stride;
      over_columns(a_.outputs,
                   [&](int64_t c, auto n) { add_at(dbias_.some + c, load_at(row + c, n), n); });
      dbias_.end_row();
    }
  }

  // dx and what the norm sums up. The rows of n are not needed any more: dn takes their place.
  void gradient_of_rows(Matrix dz, Matrix dy) {
    const Matrix dn = multiply(dz, a_.outputs, 2, at_.n, a_.columns);
    for (int64_t r = 0; r < count_; ++r) {
      float* dx = a_.dx ? a_.dx + (row_ + r) * a_.columns : nullptr;
      const float* add = a_.down ? dy.data + r * dy.stride : nullptr;
      const float* grad = dn.data + r * dn.stride;
      if (a_.norm_weight) {
        const NormBackwardRow<float> row = {grad,
                                            a_.x + (row_ + r) * a_.x_stride,
                                            a_.norm_weight,
                                            a_.norm_bias != nullptr,
                                            a_.eps,
                                            add,
                                            dx};
        norm_backward_row(row, a_.columns, dnorm_weight_, a_.dnorm_bias ? &dnorm_bias_ : nullptr);
        continue;
      }
      over_columns(a_.columns,
                   [&](int64_t c, auto n) { store_at(dx + c, load_at(grad + c, n), n); });
    }
  }

  const Args& a_;
  const Memory<P> at_;
  const Packed<P> weights_;
  char* const memory_;
  const int64_t begin_, end_;
  int64_t row_ = 0, count_ = 0;
  ColumnSums dbias_ = {}, dnorm_weight_ = {}, dnorm_bias_ = {};
};

// Adds up what the tasks have at `at`: rows of a matrix, or one row of column sums.
template <class P>
void add_matrix_row(const Args& a, int64_t bytes, int64_t at, int64_t row, int64_t columns,
                    float* to) {
  over_columns(columns, [&](int64_t c, auto n) {
    F32 sum = zero();
    for (int64_t task = 0; task < a.tasks; ++task) {
      const float* sums = reinterpret_cast<const float*>(a.memory + task * bytes + at);
      sum = sum + load_at(sums + row * padded<P>(columns) + c, n);
    }
    store_at(to + row * columns + c, sum, n);
  });
}

void add_column_sums(const Args& a, int64_t bytes, int64_t at, int64_t columns, float* to) {
  if (!to) return;
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0.0;
    for (int64_t task = 0; task < a.tasks; ++task) {
      sum += reinterpret_cast<const double*>(a.memory + task * bytes + at)[c];
    }
    to[c] = static_cast<float>(sum);
  }
}

}  // namespace

ProductBackwardSizes product_backward_plan(const ProductBackwardArgs& args) {
  const int64_t rows = (args.dw ? args.outputs : 0) + (args.ddown ? args.columns : 0);
  return with_product(args.bf16, [&]<class P>(P) -> ProductBackwardSizes {
    const Packed<P> packed(args);
    return {packed.start[3], packed.blocks[3], Memory<P>(args).bytes, rows + 1};
  });
}

void product_backward_pack(const ProductBackwardArgs& args, int64_t begin, int64_t end) {
  with_product(args.bf16, [&]<class P>(P) {
    const Packed<P> packed(args);
    for (int64_t block = begin; block < end; ++block) {
      int i = 0;
      while (block >= packed.blocks[i + 1]) ++i;
      P::template pack_operand<true>(packed.source[i], block - packed.blocks[i],
                                     packed.at(args, i));
    }
  });
}

void product_backward(const ProductBackwardArgs& args, int64_t task) {
  with_product(args.bf16, [&]<class P>(P) { Task<P>(args, task).run(); });
}

void product_backward_sum(const ProductBackwardArgs& args, int64_t begin, int64_t end) {
  with_product(args.bf16, [&]<class P>(P) {
    const Memory<P> at(args);
    const int64_t first = args.dw ? args.outputs : 0, second = args.ddown ? args.columns : 0;
    for (int64_t row = begin; row < end; ++row) {
      if (row < first) {
        add_matrix_row<P>(args, at.bytes, at.dw, row, args.columns, args.dw);
      } else if (row < first + second) {
        add_matrix_row<P>(args, at.bytes, at.ddown, row - first, args.width, args.ddown);
      } else {
        add_column_sums(args, at.bytes, at.dbias, args.outputs, args.dbias);
        add_column_sums(args, at.bytes, at.dnorm_weight, args.columns, args.dnorm_weight);
        add_column_sums(args, at.bytes, at.dnorm_bias, args.columns, args.dnorm_bias);
      }
    }
  });
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
