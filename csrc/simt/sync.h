// Host models of ptx/sync.cuh.
#pragma once

#include "api.h"
#include "device.h"

namespace flashvl::cuda {

#define FLASHVL_AT_SYNC simt::Site at = simt::Site::current()

inline void sync_block(FLASHVL_AT_SYNC) { simt::barrier_block(at); }
inline void sync_warp(uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) { simt::barrier_warp(mask, at); }
inline void sync_named(int id, int threads, FLASHVL_AT_SYNC) {
  simt::barrier_named(id, threads, true, at);
}
inline void arrive_named(int id, int threads, FLASHVL_AT_SYNC) {
  simt::barrier_named(id, threads, false, at);
}
inline void fence_device() {}  // blocks run one after another

template <class T>
struct Shuffled {
  T value;
  int source;
};

// Every lane of the mask names its source; one outside of the warp leaves the lane its own value.
template <class T>
T shuffle_from(T value, int source, uint32_t mask, const simt::Site& at) {
  return simt::collective<T>(simt::Kind::shuffle, mask, Shuffled<T>{value, source}, at,
                             [](simt::Collective& all) {
                               for (int i = 0; i < simt::kLanes; ++i) {
                                 if (!(all.mask >> i & 1)) continue;
                                 int source = all.input<Shuffled<T>>(i).source;
                                 if (source < 0 || source >= simt::kLanes) source = i;
                                 if (!(all.mask >> source & 1)) {
                                   simt::report_absent_lane(i, source, all.site);
                                   source = i;
                                 }
                                 all.result(i, all.input<Shuffled<T>>(source).value);
                               }
                             });
}

template <class T>
T shuffle_xor(T value, int by, uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) {
  return shuffle_from(value, simt::current_lane() ^ by, mask, at);
}
template <class T>
T shuffle_down(T value, int by, uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) {
  return shuffle_from(value, simt::current_lane() + by, mask, at);
}
template <class T>
T shuffle_idx(T value, int from, uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) {
  return shuffle_from(value, from & (simt::kLanes - 1), mask, at);
}

inline uint32_t ballot(bool predicate, uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) {
  return simt::collective<uint32_t>(simt::Kind::vote, mask, predicate, at,
                                    [](simt::Collective& all) {
                                      uint32_t votes = 0;
                                      for (int i = 0; i < simt::kLanes; ++i) {
                                        if (all.mask >> i & 1)
                                          votes |= static_cast<uint32_t>(all.input<bool>(i)) << i;
                                      }
                                      for (int i = 0; i < simt::kLanes; ++i) all.result(i, votes);
                                    });
}
inline bool any(bool predicate, uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) {
  return ballot(predicate, mask, at) != 0;
}
inline bool all(bool predicate, uint32_t mask = kAllLanes, FLASHVL_AT_SYNC) {
  return ballot(predicate, mask, at) == mask;
}

}  // namespace flashvl::cuda
