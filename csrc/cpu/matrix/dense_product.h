// fp32 products of matrices that stay in the cache, in any orientation: what training asks for.
// Not at level scalar, where PyTorch does better.
//
//   operand_blocks(rows)                      an operand is packed in blocks of kOperandRows rows
//   operand_bytes(rows, columns)              room for a packed operand
//   pack_operand<right>(source, block, to)    a block of the left operand's rows, or of the right
//                                             one's columns
//   pack_all<right>(source, to)               all of them
//   multiply_operands(a, b, c, stride, add)   c = a b, or c += a b, with room for whole blocks
//   padded(count)                             whole blocks of rows or columns, at least one
//   kChainRows                                rows that pass through a chain of products together
#pragma once

#if defined(FLASHVL_LEVEL_amx)
#include "split_product.h"
#else
#include "float_product.h"
#endif

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <bool right>
inline MatrixOperand pack_all(const MatrixSource& source, OperandElement* packed) {
  for (int64_t block = 0; block < operand_blocks(source.rows); ++block) {
    pack_operand<right>(source, block, packed);
  }
  return {source, packed};
}

// Rows that pass through a chain of products together, whole blocks of them. With tiles, those of
// 1024 columns take 1 MiB, and 1.5 MiB in parts, of 2 MiB of second-level cache.
#if defined(FLASHVL_LEVEL_amx)
constexpr int64_t kChainRows = 256;
#else
constexpr int64_t kChainRows = 96;
#endif

inline int64_t padded(int64_t count) { return round_up(count > 0 ? count : 1, kOperandRows); }

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
