// RMSNorm or LayerNorm of one row that lies in the first-level cache: that of the ops of these
// names (norm_rows.h) and of those that fuse it, compress_tokens with a row of its own and products
// (matrix/normalised_row.h) while they pack theirs.
//
// Rounding as in flashvl_kernels/norm.py: RMSNorm rounds the normalised value before the weight
// multiplies it, LayerNorm rounds once.
#pragma once

#include "columns.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// bias null: RMSNorm.
template <class T>
struct RowNorm {
  const T* weight;
  const T* bias;
  float eps;
};

// How far values are from a mean.
struct Deviations {
  F32 sum, squares;
};

inline Deviations operator+(Deviations a, Deviations b) {
  return {a.sum + b.sum, a.squares + b.squares};
}

// `add` of each whole vector, in four running sums: one would wait for each addition.
template <class Sum, class T, class Add>
inline Sum sum_row(const T* row, int64_t columns, Add add) {
  Sum sums[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes) {
    const Two near = load_two(row + c), far = load_two(row + c + 2 * kLanes);
    sums[0] = add(sums[0], near.a);
    sums[1] = add(sums[1], near.b);
    sums[2] = add(sums[2], far.a);
    sums[3] = add(sums[3], far.b);
  }
  for (; c + kLanes <= columns; c += kLanes) sums[0] = add(sums[0], load(row + c));
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The last columns, fewer than kLanes; the lanes past the end are `fill`.
template <class T>
inline F32 last_values(const T* row, int64_t columns, float fill) {
  const int64_t c = columns / kLanes * kLanes, left = columns - c;
  float last[kLanes];
  store(last, load_some(row + c, left));
  for (int64_t i = left; i < kLanes; ++i) last[i] = fill;
  return load(last);
}

template <class T>
inline F32 squares_of(const T* row, int64_t columns) {
  const auto add = [](F32 total, F32 value) { return fma(value, value, total); };
  const F32 whole = sum_row<F32>(row, columns, add);
  return columns % kLanes ? add(whole, last_values(row, columns, 0.0f)) : whole;
}

template <class T>
inline Deviations deviations_of(const T* row, int64_t columns, float centre) {
  const F32 from = splat(centre);
  const auto add = [from](Deviations total, F32 value) {
    const F32 away = value - from;
    return Deviations{total.sum + away, fma(away, away, total.squares)};
  };
  const Deviations whole = sum_row<Deviations>(row, columns, add);
  return columns % kLanes ? add(whole, last_values(row, columns, centre)) : whole;
}

// What one vector of a row becomes, or two.
template <class T, bool layer>
struct Scale {
  F32 centre;
  F32 rstd;
  F32 shift;

  F32 operator()(F32 value, F32 weight, F32 bias) const {
    if (!layer) return round_to<T>(value * rstd) * weight;
    return fma(fma(value - centre, rstd, shift), weight, bias);
  }

  Two operator()(Two value, Two weight, Two bias) const {
    if (layer) return {(*this)(value.a, weight.a, bias.a), (*this)(value.b, weight.b, bias.b)};
    const Two normal = round_to<T>(Two{value.a * rstd, value.b * rstd});
    return {normal.a * weight.a, normal.b * weight.b};
  }
};

// `columns` normalised values. to may be the row itself; bias is not read unless layer; next: what
// is fetched meanwhile, column by column.
template <class T, bool layer>
inline void scale_row(const T* row, T* to, int64_t columns, const T* weight, const T* bias,
                      Scale<T, layer> scale, const T* next) {
  const T* shift = layer ? bias : weight;
  over_pairs(
      columns,
      [&](int64_t c) {
        fetch(next + c);
        const Two value = load_two(row + c), w = load_two(weight + c), b = load_two(shift + c);
        store_two(to + c, scale(value, w, b));
      },
      [&](int64_t c, auto n) {
        const F32 value = load_at(row + c, n);
        store_at(to + c, scale(value, load_at(weight + c, n), load_at(shift + c, n)), n);
      });
}

// What a value v of the row is mapped by, before weight and bias: (v - centre) * scale + shift.
struct RowMoments {
  float centre, scale, shift;
};

// Means over a whole row.
struct MeanDeviations {
  double first, square;
};

template <class T>
inline MeanDeviations mean_deviations(const T* const* pieces, int64_t count, int64_t columns,
                                      float centre) {
  MeanDeviations mean = {0.0, 0.0};
  for (int64_t k = 0; k < count; ++k) {
    const Deviations away = deviations_of(pieces[k], columns, centre);
    mean.first += reduce_add(away.sum);
    mean.square += reduce_add(away.squares);
  }
  const double values = static_cast<double>(count * columns);
  return {mean.first / values, mean.square / values};
}

// Those of one row that lies in `count` pieces of `columns` values. RMSNorm takes no mean off. What
// is done once a row is done in double, so that a whole row does not err the same way.
//
// LayerNorm sweeps once, about the mean of the row's first values: any centre will do (the variance
// is E[(x - c)^2] - E[x - c]^2) that is within a standard deviation of the mean, for then at most
// half the square cancels. Where it is not, a second sweep about the mean follows.
template <class T>
inline RowMoments moments_of(const T* const* pieces, int64_t count, int64_t columns, bool layer,
                             float eps) {
  if (!layer) {
    double squares = 0.0;
    for (int64_t k = 0; k < count; ++k) squares += reduce_add(squares_of(pieces[k], columns));
    const double mean = squares / static_cast<double>(count * columns);
    return {0.0f, static_cast<float>(1.0 / __builtin_sqrt(mean + eps)), 0.0f};
  }
  const bool whole = columns >= kLanes;
  const F32 some = whole ? load(pieces[0]) : load_some(pieces[0], columns);
  float centre = reduce_add(some) / static_cast<float>(whole ? kLanes : columns);
  MeanDeviations mean = mean_deviations(pieces, count, columns, centre);
  if (!(2.0 * mean.first * mean.first <= mean.square)) {
    centre = static_cast<float>(centre + mean.first);
    mean = mean_deviations(pieces, count, columns, centre);
  }
  const double rstd = 1.0 / __builtin_sqrt(mean.square - mean.first * mean.first + eps);
  return {centre, static_cast<float>(rstd), static_cast<float>(-mean.first * rstd)};
}

// `columns` values from column `first` of a norm's row on. to may be the row itself; next: what is
// fetched meanwhile.
template <class T>
inline void scale_piece(const T* row, T* to, int64_t first, int64_t columns, const RowNorm<T>& norm,
                        const RowMoments& of, const T* next) {
  const F32 centre = splat(of.centre), scale = splat(of.scale), shift = splat(of.shift);
  const T* weight = norm.weight + first;
  if (norm.bias == nullptr) {
    scale_row<T, false>(row, to, columns, weight, nullptr, {centre, scale, shift}, next);
  } else {
    scale_row<T, true>(row, to, columns, weight, norm.bias + first, {centre, scale, shift}, next);
  }
}

// Such a row, normalised. A piece may lie at its own place in to. ahead: how far behind each piece
// the caller's next row has one, which is fetched meanwhile.
template <class T>
inline void normalise(const T* const* pieces, int64_t count, T* to, int64_t columns,
                      const RowNorm<T>& norm, int64_t ahead = 0) {
  const RowMoments row = moments_of(pieces, count, columns, norm.bias != nullptr, norm.eps);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t first = k * columns;
    scale_piece(pieces[k], to + first, first, columns, norm, row, pieces[k] + ahead);
  }
}

template <class T>
inline void normalise(const T* row, T* to, int64_t columns, const RowNorm<T>& norm) {
  normalise(&row, 1, to, columns, norm);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
