// The backward pass of RMSNorm and LayerNorm over rows: norm_backward_row.h has the formulas.
//
// Bound by bytes: x, the gradient and what is added are read once, dx is written once.

#include "norm_backward.h"

#include "norm_backward_row.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// The sums of a task: for the weight, then for the bias.
char* sums_of(const NormBackwardArgs& args, int64_t task, int which) {
  return args.memory + task * args.task_bytes + which * ColumnSums::bytes(args.columns);
}

template <class T>
void backward_rows(const NormBackwardArgs& args, int64_t task) {
  const int64_t begin = args.rows * task / args.tasks, end = args.rows * (task + 1) / args.tasks;
  ColumnSums dweight, dbias;
  dweight.start(sums_of(args, task, 0), args.columns);
  dbias.start(sums_of(args, task, 1), args.columns);
  for (int64_t r = begin; r < end; ++r) {
    const T* add = static_cast<const T*>(args.add);
    const NormBackwardRow<T> row = {static_cast<const T*>(args.grad) + r * args.grad_stride,
                                    static_cast<const T*>(args.x) + r * args.x_stride,
                                    static_cast<const T*>(args.weight),
                                    args.layer,
                                    args.eps,
                                    add == nullptr ? nullptr : add + r * args.add_stride,
                                    static_cast<T*>(args.dx) + r * args.columns};
    norm_backward_row(row, args.columns, dweight, args.layer ? &dbias : nullptr);
  }
  dweight.flush();
  dbias.flush();
}

template <class T>
void add_sums(const NormBackwardArgs& args, int which, void* to) {
  for (int64_t c = 0; c < args.columns; ++c) {
    double sum = 0.0;
    for (int64_t task = 0; task < args.tasks; ++task) {
      sum += reinterpret_cast<const double*>(sums_of(args, task, which))[c];
    }
    store_some(static_cast<T*>(to) + c, splat(static_cast<float>(sum)), 1);
  }
}

template <class T>
void add_sums(const NormBackwardArgs& args) {
  add_sums<T>(args, 0, args.dweight);
  if (args.layer) add_sums<T>(args, 1, args.dbias);
}

}  // namespace

int64_t norm_backward_bytes(const NormBackwardArgs& args) {
  return 2 * ColumnSums::bytes(args.columns);
}

void norm_backward(const NormBackwardArgs& args, int64_t task) {
  switch (args.dtype) {
    case DType::f32:
      return backward_rows<float>(args, task);
    case DType::bf16:
      return backward_rows<BF16>(args, task);
    case DType::f16:
      return backward_rows<F16>(args, task);
  }
}

void norm_backward_sum(const NormBackwardArgs& args) {
  switch (args.dtype) {
    case DType::f32:
      return add_sums<float>(args);
    case DType::bf16:
      return add_sums<BF16>(args);
    case DType::f16:
      return add_sums<F16>(args);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
