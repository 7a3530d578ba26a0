// Products of fp32 matrices that stay in the cache, in any orientation: what training asks for. Not
// at level scalar, where PyTorch does better.
//
//   with_product(bf16, f)   f(P{}) of the product P to use. Where bf16 is set and the level has
//                           one of bf16 beside that of fp32, it is that
//
//   P::kOperandRows                              rows of a block
//   operand_blocks<P>(rows)                      blocks of an operand
//   P::operand_bytes(rows, columns)              room for one, packed
//   P::pack_operand<right>(source, block, to)    a block of the left operand's rows, or of the
//                                                right one's columns
//   pack_all<P, right>(source, to)               all of them
//   P::multiply_operands(a, b, c, stride, add)   c = a b, or c += a b: as many columns in both,
//                                                and room for whole blocks in c
//   padded<P>(count)                             whole blocks of rows or columns, at least one
//   P::kChainRows                                rows that go through a chain of products
//                                                together
#pragma once

#include <type_traits>

#include "operand_source.h"
#include "row_layout.h"
#if defined(FLASHVL_LEVEL_amx)
#include "split_product.h"
#else
#include "vector_product.h"
#endif

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

#if defined(FLASHVL_LEVEL_amx)
using Fp32Product = SplitProduct<3>;
using BF16Product = SplitProduct<1>;
#elif defined(FLASHVL_LEVEL_avx512_bf16)
using Fp32Product = VectorProduct<Floats>;
using BF16Product = VectorProduct<BF16Pairs>;
#else
using Fp32Product = VectorProduct<Floats>;
using BF16Product = Fp32Product;
#endif

constexpr bool kHasBF16Product = !std::is_same_v<BF16Product, Fp32Product>;

template <class F>
inline auto with_product(bool bf16, F f) {
  if constexpr (kHasBF16Product) {
    if (bf16) return f(BF16Product{});
  }
  return f(Fp32Product{});
}

template <class Product, bool right>
inline typename Product::Operand pack_all(const MatrixSource& source,
                                          typename Product::Element* packed) {
  for (int64_t block = 0; block < operand_blocks<Product>(source.rows); ++block) {
    Product::template pack_operand<right>(source, block, packed);
  }
  return {source, packed};
}

template <class Product>
inline int64_t padded(int64_t count) {
  return round_up(count > 0 ? count : 1, Product::kOperandRows);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
