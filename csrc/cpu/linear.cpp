// The matrix product y = epilogue(norm(x) w) of linear, swiglu_mlp and gelu_mlp, for any number of
// rows: few are bound by the bytes of the weights, many by FLOPs.

#include "linear.h"

#include "matrix/product_few.h"
#include "matrix/product_many.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

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

void product(const ProductArgs& args, int64_t task, void* workspace) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.plan.few) return product_few<T>(args, task);
    Many<T>(args, task, workspace).run();
  });
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
