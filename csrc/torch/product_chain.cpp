// See product_chain.h.

#include "product_chain.h"

#include "../cpu/dispatch/dispatch.h"
#include "packed_tasks.h"
#include "precision.h"

namespace flashvl {
namespace {

// Packing the weights costs as much as some 20 rows.
constexpr int64_t kFewestRows = 32;

// 6 MiB in parts: beyond, the weights come from memory again for each few hundred rows.
constexpr int64_t kMostWeights = int64_t{1} << 20;
constexpr int64_t kLongest = 8192;  // 256 rows of that many columns are 12 MiB in parts

const float* floats(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

}  // namespace

bool chains(const cpu::ProductArgs& product) {
  static cpu::ProductChainTask* const kernel = FLASHVL_SELECT(cpu::ProductChainTask, product_chain);
  const cpu::Weights& w = product.w;
  return kernel != nullptr && product.dtype == cpu::DType::f32 && !w.panels &&
         w.format == cpu::WeightFormat::floats && product.rows >= kFewestRows && w.columns > 0 &&
         w.rows > 0 && w.columns <= kLongest && w.rows <= kLongest &&
         w.rows * w.columns <= kMostWeights;
}

void multiply_chain(const Rows& x, const NormTensors& norm, const cpu::ProductArgs& first,
                    const cpu::ProductArgs* second) {
  static cpu::ProductChainPlan* const plan =
      FLASHVL_SELECT(cpu::ProductChainPlan, product_chain_plan);
  static cpu::ProductChainPack* const pack =
      FLASHVL_SELECT(cpu::ProductChainPack, product_chain_pack);
  static cpu::ProductChainTask* const task = FLASHVL_SELECT(cpu::ProductChainTask, product_chain);
  cpu::ProductChainArgs args = {};
  args.first = first;
  args.two = second != nullptr;
  if (second != nullptr) args.second = *second;
  args.x = static_cast<const float*>(x.tensor.const_data_ptr());
  args.x_stride = x.stride;
  args.norm_weight = floats(norm.weight);
  args.norm_bias = floats(norm.bias);
  args.eps = norm.eps;
  args.bf16 = products_in_bf16();
  pack_and_run(args, first.rows, kFewestRows, plan, pack, task);
}

}  // namespace flashvl
