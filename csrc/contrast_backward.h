// dq = scale W k and dk = scale W^T q, tile by tile, with W = g exp(x - rows) + h exp(x - cols).
#pragma once
#include "contrast_tile.h"
#include "pool.h"
#include "threads.h"

namespace {

template <class T> struct ContrastBackwardState : ContrastState<T> {
  using ContrastState<T>::ContrastState;
  const fastssl::ContrastBackward* call;
  T* dq;               // by rank, the layout of z.row_panels: W k
  T *weight, *lse;     // of a query: g / sum when bounded, else g and its log-denominator, base 2
  T *k_weight, *k_lse;  // of a key; null without column terms
  double* dscale;      // by rank: partial sums of q . (W k)
  T* scratch;

  ContrastScratch<T> scratch_of(int rank) const {
    return ContrastScratch<T>(scratch + rank * ContrastScratch<T>::elements(this->z.columns),
                              this->z.columns);
  }
  T* dq_of(int rank) const { return dq + rank * this->z.row_panel_elements(); }
};

// Weights of rows [begin, end) of one side; a row without pairs weighs nothing.
template <class T>
void side_weights(const ContrastState<T>& state, const void* grad, const void* denominator,
                  int64_t begin, int64_t end, int64_t count, T* weight, T* lse) {
  const T *g = static_cast<const T*>(grad), *l = static_cast<const T*>(denominator);
  const double bound = -double(state.shift) / kLog2e;
  for (int64_t i = begin; i < end; ++i) {
    const bool none = i >= count || (std::isinf(l[i]) && l[i] < 0);
    const double log_sum = none ? 0 : double(l[i]), slope = none ? 0 : double(g[i]);
    weight[i] = T(state.bounded ? slope * std::exp(bound - log_sum) : slope);
    lse[i] = T(log_sum * kLog2e);
  }
}

// The weight of a vector of pairs from what is kept of it: E when bounded, else x.
template <class T, bool Columns>
FASTSSL_INLINE Vec<T> tile_weight(const ContrastBackwardState<T>& state, Vec<T> kept, int64_t key,
                                  int64_t q) {
  const Vec<T> weight = load_loose<T>(state.weight + q);
  if (state.bounded) return kept * (Columns ? weight + state.k_weight[key] : weight);
  Vec<T> total = exp2_flushed<T>(kept - load_loose<T>(state.lse + q)) * weight;
  if (Columns) total += exp2_flushed<T>(kept - state.k_lse[key]) * state.k_weight[key];
  return total;
}

template <class T, bool Columns>
void weights_of(const ContrastBackwardState<T>& state, const Tile& tile, const T* kept,
                T* weights) {
  visit_kept<T>(tile, [&](int64_t r, int64_t rows, int64_t q) {
    const T* from = kept + kept_offset<T>(tile, r, q, rows);
    for (int64_t a = 0; a < rows; ++a)
      for (int h = 0; h < kPanel<T>; h += kLanes<T>)
        store<T>(weights + (r + a) * kWeightStep<T> + (q - tile.j0) + h,
                 tile_weight<T, Columns>(state, load_loose<T>(from + a * kPanel<T> + h),
                                         tile.i0 + r + a, q + h));
  });
}

// Bounded and not kept: E is made again on the way.
template <class T, bool Columns>
void weights_again(const ContrastBackwardState<T>& state, const Tile& tile,
                   const ContrastScratch<T>& scratch) {
  visit_products(state, tile, scratch.keys, scratch.block,
                 [&](int64_t r, int64_t rows, int64_t q, bool masked) {
                   T* out = scratch.weights + r * kWeightStep<T> + (q - tile.j0);
                   for (int64_t a = 0; a < rows; ++a)
                     for (int h = 0; h < kPanel<T>; h += kLanes<T>) {
                       const int64_t key = tile.i0 + r + a;
                       const Vec<T> s = load<T>(scratch.block + a * kPanel<T> + h);
                       Vec<T> e = exp2_normal<T>(s * state.slope + state.shift);
                       if (masked) e = (Vec<T>)((Ints<T>)e & counted(state.lanes, key, q + h));
                       store<T>(out + a * kWeightStep<T> + h,
                                tile_weight<T, Columns>(state, e, key, q + h));
                     }
                 });
}

template <class T, bool Columns>
void weigh_tile(const ContrastBackwardState<T>& state, const Tile& tile,
                const ContrastScratch<T>& scratch, const T* kept) {
  if (kept) return weights_of<T, Columns>(state, tile, kept, scratch.weights);
  if (state.bounded) return weights_again<T, Columns>(state, tile, scratch);
  logits_of(state, tile, scratch, scratch.tile);
  weights_of<T, Columns>(state, tile, scratch.tile, scratch.weights);
}

template <class T>
void backward_keys(const ContrastBackwardState<T>& state, int rank, int64_t begin, int64_t end,
                   const ContrastScratch<T>& scratch, const T* kept, int64_t* at,
                   int64_t kept_end, double* buffer) {
  const auto& problem = state.problem;
  const int64_t panels = state.z.panels();
  pack_keys(problem, begin, end, scratch.keys, scratch.raw);
  if (state.call->dk)
    std::memset(scratch.key_grad, 0, size_t(panels * kKeyStep<T>) * sizeof(T));
  state.query_tiles(begin, end, [&](const Tile& tile) {
    const T* here = nullptr;
    if (kept && *at + tile.area() <= kept_end) {
      here = kept + *at;
      *at += tile.area();
    }
    if (state.k_weight) weigh_tile<T, true>(state, tile, scratch, here);
    else weigh_tile<T, false>(state, tile, scratch, here);
    multiply_pairs(state.z, tile, scratch, state.dq_of(rank),
                   state.call->dk ? scratch.key_grad : nullptr);
  });
  if (!state.call->dk) return;
  for (int64_t r = 0; r < end - begin; ++r)
    write_scaled(scratch.key_grad + r * kPanel<T>, kKeyStep<T>, problem.width, problem.scale,
                 problem.k_dtype, buffer, state.call->dk, begin + r);
}

// Queries [begin, end): the ranks' partial products in their order.
template <class T>
void finish_gradients(const ContrastBackwardState<T>& state, int rank, int64_t begin, int64_t end,
                      double* buffer) {
  const auto& problem = state.problem;
  const int64_t P = kPanel<T>;
  double along = 0;
  for (int64_t q = begin; q < end; ++q) {
    for (int64_t d = 0; d < problem.width; ++d) {
      const int64_t at = d / P * state.z.panel_step + q * P + d % P;
      double total = 0;
      for (int r = 0; r < state.ranks; ++r) total += double(state.dq_of(r)[at]);
      along += total * double(state.z.row_panels[at]);
      buffer[d] = total * problem.scale;
    }
    if (state.call->dq) write_row(buffer, problem.width, problem.q_dtype, state.call->dq, q);
  }
  state.dscale[rank] = along;
}

}  // namespace
