// log(1 + exp(z)) and its derivative over a tile of logits: rows are keys, columns queries.
#pragma once
#include "contrast_tile.h"

namespace {

// What one query gathers over keys: its loss, and the sums of W and of W q.k.
template <class T> struct QuerySums {
  T *loss, *bias, *scale;
};

// Of z: log(1 + e^z) and 1 / (1 + e^-z), both to a few units in the last place for every z.
template <class T> struct Softplus {
  Vec<T> value, slope;
};

// One exponential and one division serve both: with e = exp(-|z|) and r = 1 / ((1 + e) (2 + e)),
// log(1 + e) = 2 atanh(e / (2 + e)).
template <class T> FASTSSL_INLINE Softplus<T> softplus(Vec<T> z) {
  const Vec<T> zero = {};
  const Vec<T> size = z > zero ? z : -z;
  const Vec<T> e = exp2_flushed<T>(size * T(-kLog2e));
  const Vec<T> one = e + T(1), two = e + T(2), r = T(1) / (one * two);
  const Vec<T> t = e * one * r, u = t * t, inverse = two * r;
  constexpr int degree = int(sizeof(Simd<T>::kLog1p) / sizeof(T)) - 1;
  Vec<T> p = splat<T>(Simd<T>::kLog1p[degree]);
#pragma GCC unroll 12
  for (int k = degree - 1; k >= 0; --k) p = p * u + Simd<T>::kLog1p[k];
  return {(z > zero ? z : zero) + t * p, z > zero ? inverse : e * inverse};
}

// A block of products with a panel of queries. `first` is the lane of the first key's partner;
// without Partners none of the block's keys has one in the panel. W goes to `out` unless null.
template <class T, bool Partners>
FASTSSL_INLINE void sigmoid_block(const T* block, int64_t rows, int64_t first, T scale, T bias,
                                  const T* g, const QuerySums<T>& sums, T* out) {
  using Int = typename Simd<T>::Int;
  Ints<T> lane;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = Int(l);
  for (int h = 0; h < kPanel<T>; h += kLanes<T>) {
    Vec<T> loss = load<T>(sums.loss + h), by_bias = load<T>(sums.bias + h);
    Vec<T> by_scale = load<T>(sums.scale + h);
    const Vec<T> weight = g ? load<T>(g + h) : splat<T>(T(1));
    for (int64_t a = 0; a < rows; ++a) {
      const Vec<T> s = load<T>(block + a * kPanel<T> + h), x = s * scale + bias;
      const Ints<T> partner = lane == Int(first + a - h);
      const Softplus<T> found = softplus<T>(Partners ? select<T>(partner, -x, x) : x);
      const Vec<T> w = Partners ? select<T>(partner, -found.slope, found.slope) : found.slope;
      loss += found.value;
      by_bias += w;
      by_scale += w * s;
      if (out) store<T>(out + a * kWeightStep<T> + h, w * weight);
    }
    store<T>(sums.loss + h, loss);
    store<T>(sums.bias + h, by_bias);
    store<T>(sums.scale + h, by_scale);
  }
}

// A whole tile; W into scratch.weights where `weights`. `sums` are of the tile's queries.
template <class T>
void sigmoid_tile(const ContrastState<T>& state, const Tile& tile, int64_t diagonal, T bias,
                  const T* g, const QuerySums<T>& sums, const ContrastScratch<T>& scratch,
                  T* weights) {
  const T scale = T(state.problem.scale);
  for (T* sum : {sums.loss, sums.bias, sums.scale}) std::memset(sum, 0, size_t(kTile) * sizeof(T));
  visit_products(state, tile, scratch.keys, scratch.block,
                 [&](int64_t r, int64_t rows, int64_t q, bool) {
                   const int64_t c = q - tile.j0, first = tile.i0 + r - diagonal - q;
                   const QuerySums<T> here{sums.loss + c, sums.bias + c, sums.scale + c};
                   T* out = weights ? weights + r * kWeightStep<T> + c : nullptr;
                   const T* weigh = g ? g + q : nullptr;
                   if (first + rows > 0 && first < kPanel<T>)
                     sigmoid_block<T, true>(scratch.block, rows, first, scale, bias, weigh, here,
                                            out);
                   else
                     sigmoid_block<T, false>(scratch.block, rows, 0, scale, bias, weigh, here, out);
                 });
}

}  // namespace
