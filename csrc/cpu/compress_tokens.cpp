// Vision tokens compressed to fewer tokens, from plain tokens or straight from overlapping tiles,
// with their norm.
//
// Bound by bytes: each output token gathers its source rows through the canvas geometry
// (canvas.h), so that no canvas is ever written, and is normalised while it lies in the first-level
// cache (4 x 1152 bf16 values are 9 KiB). Sums are taken in fp32 and rounded once, before the norm.

#include "compress_tokens.h"

#include "canvas.h"
#include "row_norm.h"
#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kAtOnce = 4;    // canvas positions whose rows one sweep reads together
constexpr int kMostSide = 4;  // blocks up to 4x4 are normalised without a copy; none has more

// The task's working memory: one fp32 row and kAtOnce rows of T, each of args.channels.
template <class T>
struct Scratch {
  float* total;
  T* stage[kAtOnce];
};

template <class T>
RowNorm<T> norm_of(const CompressTokensArgs& args) {
  return {static_cast<const T*>(args.weight), static_cast<const T*>(args.bias), args.eps};
}

// The values of one canvas position rounded to T, normalised with norm_first: where they lie in x
// if nothing has to be done to them, else in `stage`. Positions off the canvas are zeros.
template <class T>
const T* cell(const CompressTokensArgs& args, const T* image, int64_t row, int64_t col, T* stage) {
  const Canvas& canvas = args.canvas;
  if (row >= canvas.height || col >= canvas.width) {
    __builtin_memset(stage, 0, static_cast<size_t>(args.channels) * sizeof(T));
    return stage;
  }
  const Sources<T> from =
      sources_at(canvas, image, sources_along(canvas.down, row), sources_along(canvas.across, col));
  const T* values = from.row[0];
  if (from.ways > 1) {
    write_position(from, stage, args.channels);
    values = stage;
  }
  if (!args.norm_first) return values;
  normalise(values, stage, args.channels, norm_of<T>(args));
  return stage;
}

// ---- shuffle: a block of factor x factor positions side by side
// ----------------------------------

// Four rows element by element: a stride of 4 that compilers vectorise.
template <class T>
void interleave_four(const T* __restrict a, const T* __restrict b, const T* __restrict c,
                     const T* __restrict d, T* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    to[4 * i] = a[i];
    to[4 * i + 1] = b[i];
    to[4 * i + 2] = c[i];
    to[4 * i + 3] = d[i];
  }
}

template <class T>
void shuffle_channel_major(const CompressTokensArgs& args, const T* image, int64_t row, int64_t col,
                           const Scratch<T>& scratch, T* to) {
  const int64_t factor = args.factor, cells = factor * factor;
  if (factor == 2) {
    const T* from[4];
    for (int k = 0; k < 4; ++k) {
      from[k] = cell(args, image, row + k / 2, col + k % 2, scratch.stage[k]);
    }
    return interleave_four(from[0], from[1], from[2], from[3], to, args.channels);
  }
  for (int64_t k = 0; k < cells; ++k) {
    const T* from = cell(args, image, row + k / factor, col + k % factor, scratch.stage[0]);
    for (int64_t c = 0; c < args.channels; ++c) to[c * cells + k] = from[c];
  }
}

// Cells one after the other, normalised from where they lie, without a copy.
template <class T>
void shuffle_cells(const CompressTokensArgs& args, const T* image, int64_t row, int64_t col,
                   const RowNorm<T>& norm, T* to) {
  const int64_t factor = args.factor, channels = args.channels;
  const bool norm_last = norm.weight != nullptr && !args.norm_first;
  const bool in_place = norm_last && factor <= kMostSide;
  const T* cells[kMostSide * kMostSide];
  for (int64_t k = 0; k < factor * factor; ++k) {
    T* target = to + k * channels;
    const T* from = cell(args, image, row + k / factor, col + k % factor, target);
    if (in_place) {
      cells[k] = from;
    } else if (from != target) {
      copy_row(from, target, channels);
    }
  }
  if (in_place) {
    // In a plain grid the next block lies right behind this one.
    const int64_t ahead = args.transpose ? 0 : factor * channels;
    normalise(cells, factor * factor, to, channels, norm, ahead);
  } else if (norm_last) {
    normalise(to, to, channels * factor * factor, norm);
  }
}

template <class T>
void shuffle_token(const CompressTokensArgs& args, const T* image, int64_t i, int64_t j,
                   const RowNorm<T>& norm, const Scratch<T>& scratch, T* to) {
  const int64_t factor = args.factor;
  if (!args.channel_major || factor == 1) {
    return shuffle_cells(args, image, i * factor, j * factor, norm, to);
  }
  shuffle_channel_major(args, image, i * factor, j * factor, scratch, to);
  if (norm.weight != nullptr && !args.norm_first) {
    normalise(to, to, args.channels * factor * factor, norm);
  }
}

// ---- pooling: a weighted sum of positions
// --------------------------------------------------------

// The canvas positions along one axis that an output adds up.
struct Taps {
  int64_t count;
  bool weighted;  // bilinear: two positions with weights; else `count` from index[0] on, weight 1
  int64_t index[2];
  float weight[2];

  int64_t at(int64_t k) const { return weighted ? index[k] : index[0] + k; }
  float weight_at(int64_t k) const { return weighted ? weight[k] : 1.0f; }
};

// Half-pixel centres, clamped at the edges, as torch.nn.functional.interpolate does. A tap of
// weight 0 stays in: what is not finite there turns into NaN in PyTorch, too.
Taps bilinear_taps(int64_t size, int64_t out, int64_t i) {
  if (size == out) return {2, true, {i, i}, {1.0f, 0.0f}};
  const double scale = static_cast<double>(size) / static_cast<double>(out);
  double place = scale * (static_cast<double>(i) + 0.5) - 0.5;
  if (place < 0.0) place = 0.0;
  int64_t low = static_cast<int64_t>(place);
  if (low > size - 1) low = size - 1;
  const int64_t high = low < size - 1 ? low + 1 : low;
  double share = place - static_cast<double>(low);
  if (share > 1.0) share = 1.0;
  return {2, true, {low, high}, {static_cast<float>(1.0 - share), static_cast<float>(share)}};
}

Taps taps_along(const CompressTokensArgs& args, int64_t size, int64_t out, int64_t i) {
  if (args.pooling == Pooling::bilinear) return bilinear_taps(size, out, i);
  if (args.pooling == Pooling::average) return {args.factor, false, {i * args.factor, 0}, {}};
  const int64_t first = i * size / out, stop = ((i + 1) * size + out - 1) / out;
  return {stop - first, false, {first, 0}, {}};
}

template <class Lanes>
void add_weighted(F32 sum, float weight, bool first, float* total, Lanes lanes) {
  const F32 scaled = sum * splat(weight);
  store_at(total, first ? scaled : fma(sum, splat(weight), load_at(total, lanes)), lanes);
}

// total (+)= weight * (the weighted sum of n rows), where each position lies in one tile.
template <int n, class T>
void add_plain(const Sources<T>* from, const float* shares, float weight, bool first, float* total,
               int64_t channels) {
  F32 share[n];
  for (int k = 0; k < n; ++k) share[k] = splat(shares[k]);
  over_columns(channels, [&](int64_t c, auto lanes) {
    F32 sum = load_at(from[0].row[0] + c, lanes) * share[0];
#pragma GCC unroll 4
    for (int k = 1; k < n; ++k) {
      sum = fma(load_at(from[k].row[0] + c, lanes), share[k], sum);
    }
    add_weighted(sum, weight, first, total + c, lanes);
  });
}

// The same where tiles are blended.
template <class T>
void add_blended(const Sources<T>* from, const float* shares, int n, float weight, bool first,
                 float* total, int64_t channels) {
  over_columns(channels, [&](int64_t c, auto lanes) {
    F32 sum = blend(from[0], c, lanes) * splat(shares[0]);
    for (int k = 1; k < n; ++k) sum = fma(blend(from[k], c, lanes), splat(shares[k]), sum);
    add_weighted(sum, weight, first, total + c, lanes);
  });
}

template <class T>
void add_positions(const Sources<T>* from, const float* shares, int n, float weight, bool first,
                   float* total, int64_t channels) {
  bool plain = true;
  for (int k = 0; k < n; ++k) plain = plain && from[k].ways == 1;
  if (!plain) return add_blended(from, shares, n, weight, first, total, channels);
  switch (n) {
    case 1:
      return add_plain<1>(from, shares, weight, first, total, channels);
    case 2:
      return add_plain<2>(from, shares, weight, first, total, channels);
    case 3:
      return add_plain<3>(from, shares, weight, first, total, channels);
    default:
      return add_plain<4>(from, shares, weight, first, total, channels);
  }
}

// Rows of the bin one after the other: each row's sum stays short, which keeps its error small.
template <class T>
void pool_token(const CompressTokensArgs& args, const T* image, int64_t i, int64_t j,
                const Scratch<T>& scratch, T* to) {
  const Canvas& canvas = args.canvas;
  const int64_t channels = args.channels;
  const Taps down = taps_along(args, canvas.height, args.rows, i);
  const Taps across = taps_along(args, canvas.width, args.cols, j);
  bool first = true;
  for (int64_t a = 0; a < down.count; ++a) {
    const AxisSources line = sources_along(canvas.down, down.at(a));
    for (int64_t b = 0; b < across.count; b += kAtOnce) {
      const int n = static_cast<int>(across.count - b < kAtOnce ? across.count - b : kAtOnce);
      Sources<T> from[kAtOnce];
      float shares[kAtOnce];
      for (int k = 0; k < n; ++k) {
        const int64_t col = across.at(b + k);
        shares[k] = across.weight_at(b + k);
        from[k] = sources_at(canvas, image, line, sources_along(canvas.across, col));
        if (!args.norm_first) continue;
        from[k].row[0] = cell(args, image, down.at(a), col, scratch.stage[k]);
        from[k].ways = 1;
      }
      add_positions(from, shares, n, down.weight_at(a), first, scratch.total, channels);
      first = false;
    }
  }
  const float positions = down.weighted ? 1.0f : static_cast<float>(down.count * across.count);
  over_columns(channels, [&](int64_t c, auto lanes) {
    store_at(to + c, load_at(scratch.total + c, lanes) / splat(positions), lanes);
  });
}

// ---- tokens
// --------------------------------------------------------------------------------------

template <class T>
void compress_rows(const CompressTokensArgs& args, int64_t begin, int64_t end, void* memory) {
  const Canvas& canvas = args.canvas;
  const bool shuffle = args.pooling == Pooling::shuffle;
  const int64_t made = args.channels * (shuffle ? args.factor * args.factor : 1);
  const int64_t tokens = args.rows * args.cols;
  const int64_t image_stride = canvas.down.tiles * canvas.across.tiles * canvas.tile_stride;
  const RowNorm<T> norm = norm_of<T>(args);
  Scratch<T> scratch;
  scratch.total = static_cast<float*>(memory);
  T* rows = reinterpret_cast<T*>(scratch.total + args.channels);
  for (int k = 0; k < kAtOnce; ++k) scratch.stage[k] = rows + k * args.channels;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t image = t / tokens, place = t - image * tokens;
    const int64_t side = args.transpose ? args.rows : args.cols;
    const int64_t outer = place / side, inner = place - outer * side;
    const int64_t i = args.transpose ? inner : outer, j = args.transpose ? outer : inner;
    const T* x = static_cast<const T*>(args.x) + image * image_stride;
    T* y = static_cast<T*>(args.y) + t * made;
    if (shuffle) {
      shuffle_token(args, x, i, j, norm, scratch, y);
      continue;
    }
    pool_token(args, x, i, j, scratch, y);
    if (norm.weight != nullptr && !args.norm_first) normalise(y, y, made, norm);
  }
}

}  // namespace

void compress_tokens(const CompressTokensArgs& args, int64_t begin, int64_t end, void* scratch) {
  switch (args.dtype) {
    case DType::f32:
      return compress_rows<float>(args, begin, end, scratch);
    case DType::bf16:
      return compress_rows<BF16>(args, begin, end, scratch);
    case DType::f16:
      return compress_rows<F16>(args, begin, end, scratch);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
