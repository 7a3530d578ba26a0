// What each position of a stitched canvas is made of: at most two tiles an axis, four in a corner.
//
// Worked out on the fly: two integer divisions an axis are nothing beside a row of channels, and
// no table has to be allocated, filled or cached. The rules are those of flashvl_kernels/tiles.py.
#pragma once

#include <cstddef>

#include "columns.h"
#include "stitch_tiles.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// The tiles under one position of an axis, the upper (left) one first. run: how many positions,
// this one included, go on in the same tile alone.
struct AxisSources {
  int ways;
  int64_t tile[2];
  int64_t local[2];
  double share[2];
  int64_t run;
};

inline AxisSources sources_along(const TileAxis& axis, int64_t position) {
  const int64_t place = position + axis.border;
  const int64_t step = axis.tile - axis.overlap;
  int64_t last = place / step;  // the last tile that covers this position
  if (last > axis.tiles - 1) last = axis.tiles - 1;
  const int64_t local = place - last * step;
  const bool crop = axis.rule == StitchRule::crop;
  const int64_t cut = (axis.overlap + 1) / 2;  // crop: the later tile's first own patch
  if (last > 0 && local < axis.overlap) {
    if (!crop) {
      const double share = axis.rule == StitchRule::mean
                               ? 0.5
                               : static_cast<double>(2 * local + 1) / (2 * axis.overlap);
      return {2, {last - 1, last}, {local + step, local}, {1.0 - share, share}, 1};
    }
    if (local < cut) {
      return {1, {last - 1, 0}, {local + step, 0}, {1.0, 0.0}, cut - local};
    }
  }
  const int64_t stop = last == axis.tiles - 1 ? axis.tile : crop ? step + cut : step;
  return {1, {last, 0}, {local, 0}, {1.0, 0.0}, stop - local};
}

// The feature rows that one canvas position adds up, and their shares.
template <class T>
struct Sources {
  int ways;  // 1, 2 or 4
  const T* row[4];
  float share[4];
};

// image points at the first tile of the position's image.
template <class T>
inline Sources<T> sources_at(const Canvas& canvas, const T* image, const AxisSources& down,
                             const AxisSources& across) {
  Sources<T> out;
  out.ways = 0;
  for (int i = 0; i < down.ways; ++i) {
    for (int j = 0; j < across.ways; ++j) {
      const int64_t tile = down.tile[i] * canvas.across.tiles + across.tile[j];
      const int64_t token = down.local[i] * canvas.across.tile + across.local[j];
      out.row[out.ways] = image + tile * canvas.tile_stride + token * canvas.token_stride;
      out.share[out.ways] = static_cast<float>(down.share[i] * across.share[j]);
      ++out.ways;
    }
  }
  return out;
}

// The blended value of the channels from c on, in fp32. Sources of share 0 are not in the list, so
// an infinite feature of theirs cannot turn into NaN.
template <class T, class Lanes>
inline F32 blend(const Sources<T>& from, int64_t c, Lanes lanes) {
  const F32 first = load_at(from.row[0] + c, lanes);
  if (from.ways == 1) return first;
  F32 sum = first * splat(from.share[0]);
  sum = fma(load_at(from.row[1] + c, lanes), splat(from.share[1]), sum);
  if (from.ways == 2) return sum;
  sum = fma(load_at(from.row[2] + c, lanes), splat(from.share[2]), sum);
  return fma(load_at(from.row[3] + c, lanes), splat(from.share[3]), sum);
}

template <class T>
inline void copy_row(const T* from, T* to, int64_t elements) {
  __builtin_memcpy(to, from, static_cast<size_t>(elements) * sizeof(T));
}

// One canvas position, rounded to T.
template <class T>
inline void write_position(const Sources<T>& from, T* to, int64_t channels) {
  if (from.ways == 1) return copy_row(from.row[0], to, channels);
  over_columns(channels,
               [&](int64_t c, auto lanes) { store_at(to + c, blend(from, c, lanes), lanes); });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
