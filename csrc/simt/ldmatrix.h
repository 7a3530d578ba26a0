// Host models of ptx/ldmatrix.cuh.
#pragma once

#include "memory.h"

namespace flashvl::cuda {

template <int kMatrices>
struct Fragment {
  uint32_t r[kMatrices];
};

template <int kMatrices, bool kTransposed>
Fragment<kMatrices> ldmatrix_model(const void* row, const simt::Site& at) {
  return simt::collective<Fragment<kMatrices>>(
      simt::Kind::ldmatrix, kAllLanes, row, at, [](simt::Collective& all) {
        const void* rows[simt::kLanes];
        alignas(16) unsigned char bytes[simt::kLanes][16];
        for (int i = 0; i < simt::kLanes; ++i) rows[i] = all.input<const void*>(i);
        simt::ldmatrix_rows(rows, 8 * kMatrices, bytes, all.site);
        const auto element = [&](int matrix, int row, int column) {
          uint16_t bits;
          std::memcpy(&bits, bytes[8 * matrix + row] + 2 * column, 2);
          return static_cast<uint32_t>(bits);
        };
        for (int lane = 0; lane < simt::kLanes; ++lane) {
          Fragment<kMatrices> out;
          for (int m = 0; m < kMatrices; ++m) {
            const int major = lane / 4, minor = 2 * (lane % 4);
            out.r[m] = kTransposed ? element(m, minor, major) | element(m, minor + 1, major) << 16
                                   : element(m, major, minor) | element(m, major, minor + 1) << 16;
          }
          all.result(lane, out);
        }
      });
}

template <int kMatrices, class T>
void ldmatrix(uint32_t (&r)[kMatrices], Shared<T> row, FLASHVL_AT) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const auto out = ldmatrix_model<kMatrices, false>(row.address, at);
  for (int m = 0; m < kMatrices; ++m) r[m] = out.r[m];
}

template <int kMatrices, class T>
void ldmatrix_transposed(uint32_t (&r)[kMatrices], Shared<T> row, FLASHVL_AT) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const auto out = ldmatrix_model<kMatrices, true>(row.address, at);
  for (int m = 0; m < kMatrices; ++m) r[m] = out.r[m];
}

}  // namespace flashvl::cuda
