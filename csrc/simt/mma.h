// Host models of ptx/mma.cuh: fragments to matrices, the product in full, and back.
#pragma once

#include "api.h"
#include "device.h"

namespace flashvl::cuda {

template <class Sum>
struct MmaOperands {
  uint32_t a[4], b[2];
  Sum d[4];
};

template <class Sum>
struct MmaResult {
  Sum d[4];
};

// kElements: of one register, so k is 8 * kElements. element(bits, i) is element i of a register.
template <class Sum, int kElements, class Element>
void mma_model(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element,
               const simt::Site& at) {
  MmaOperands<Sum> mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  std::memcpy(mine.d, d, sizeof(d));
  const auto finish = [&](simt::Collective& all) {
    constexpr int kDepth = 8 * kElements;
    Sum left[16][kDepth], right[kDepth][8];
    for (int lane = 0; lane < simt::kLanes; ++lane) {
      const auto from = all.input<MmaOperands<Sum>>(lane);
      const int group = lane / 4, first = kElements * (lane % 4);
      for (int e = 0; e < kElements; ++e) {
        for (int i = 0; i < 4; ++i) {
          left[group + 8 * (i % 2)][first + 4 * kElements * (i / 2) + e] = element(from.a[i], e);
        }
        for (int i = 0; i < 2; ++i) {
          right[first + 4 * kElements * i + e][group] = element(from.b[i], e);
        }
      }
    }
    for (int lane = 0; lane < simt::kLanes; ++lane) {
      const auto from = all.input<MmaOperands<Sum>>(lane);
      MmaResult<Sum> out;
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        Sum sum = from.d[i];
        for (int k = 0; k < kDepth; ++k) sum += left[row][k] * right[k][column];
        out.d[i] = sum;
      }
      all.result(lane, out);
    }
    simt::count_mma();
  };
  const auto out = simt::collective<MmaResult<Sum>>(simt::Kind::mma, kAllLanes, mine, at, finish);
  std::memcpy(d, out.d, sizeof(d));
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  simt::Site at = simt::Site::current()) {
  mma_model<float, 2>(
      d, a, b,
      [](uint32_t bits, int i) { return to_float(T{static_cast<uint16_t>(bits >> 16 * i)}); }, at);
}

inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            simt::Site at = simt::Site::current()) {
  mma_model<int32_t, 4>(
      d, a, b,
      [](uint32_t bits, int i) { return static_cast<int32_t>(static_cast<int8_t>(bits >> 8 * i)); },
      at);
}

}  // namespace flashvl::cuda
