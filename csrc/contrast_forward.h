// Log-denominators by query and by key, the largest logit of a query, and the mean key.
#pragma once
#include "contrast_tile.h"
#include "pool.h"
#include "threads.h"

namespace {

template <class T> struct ContrastForwardState : ContrastState<T> {
  using ContrastState<T>::ContrastState;
  const fastssl::ContrastForward* call;
  double *sum, *peak;  // by rank and query: sum of 2^(x - peak); peak is used when unbounded
  T* top;              // by rank and query
  T* mean;             // by rank, the layout of z.row_panels: sum of E k; null unless asked
  T* scratch;

  ContrastScratch<T> scratch_of(int rank) const {
    return ContrastScratch<T>(scratch + rank * ContrastScratch<T>::elements(this->z.columns),
                              this->z.columns);
  }
  T* mean_of(int rank) const { return mean + rank * this->z.row_panel_elements(); }
};

// E of one block into `out` (or nowhere), its sums into the vectors of its rows and columns.
template <class T, bool Masked>
FASTSSL_INLINE void sum_block(const ContrastState<T>& state, const T* block, int64_t rows,
                              int64_t key, int64_t q, T* row_sum, T* column_sum, T* column_top,
                              T* out, int64_t out_step) {
  constexpr int L = kLanes<T>;
  for (int h = 0; h < kPanel<T>; h += L) {
    Vec<T> column = load<T>(column_sum + h), top = load<T>(column_top + h);
    for (int64_t a = 0; a < rows; ++a) {
      Vec<T> x = load<T>(block + a * kPanel<T> + h) * state.slope;
      Vec<T> e = exp2_normal<T>(x + state.shift);
      if (Masked) {
        const Ints<T> yes = counted(state.lanes, key + a, q + h);
        e = (Vec<T>)((Ints<T>)e & yes);
        x = select<T>(yes, x, splat<T>(T(-__builtin_inf())));
      }
      column += e;
      top = x > top ? x : top;
      if (row_sum) store<T>(row_sum + a * L, load<T>(row_sum + a * L) + e);
      if (out) store_loose<T>(out + a * out_step + h, e);
    }
    store<T>(column_sum + h, column);
    store<T>(column_top + h, top);
  }
}

// What a tile leaves in the sums of its queries.
template <class T>
void add_columns(const ContrastForwardState<T>& state, int rank, const Tile& tile,
                 const ContrastScratch<T>& scratch) {
  const int64_t at = rank * state.z.rows + tile.j0;
  for (int64_t c = 0; c < tile.j1 - tile.j0; ++c) {
    state.sum[at + c] += double(scratch.column_sum[c]);
    if (scratch.column_top[c] > state.top[at + c]) state.top[at + c] = scratch.column_top[c];
  }
}

template <class T> void clear_columns(const Tile& tile, const ContrastScratch<T>& scratch) {
  for (int64_t c = 0; c < tile.j1 - tile.j0; ++c) {
    scratch.column_sum[c] = 0;
    scratch.column_top[c] = T(-__builtin_inf());
  }
}

// Bounded logits. E goes to `kept`, or, for the mean key, to scratch.weights.
template <class T>
void bounded_tile(const ContrastForwardState<T>& state, int rank, const Tile& tile,
                  const ContrastScratch<T>& scratch, T* kept) {
  clear_columns(tile, scratch);
  const int64_t step = state.mean ? kWeightStep<T> : kPanel<T>;
  visit_products(state, tile, scratch.keys, scratch.block,
                 [&](int64_t r, int64_t rows, int64_t q, bool masked) {
                   T* row_sum = state.call->cols ? scratch.row_sum + r * kLanes<T> : nullptr;
                   const int64_t c = q - tile.j0;
                   T* out = state.mean ? scratch.weights + r * step + c
                            : kept     ? kept + kept_offset<T>(tile, r, q, rows)
                                       : nullptr;
                   const int64_t key = tile.i0 + r;
                   if (masked)
                     sum_block<T, true>(state, scratch.block, rows, key, q, row_sum,
                                        scratch.column_sum + c, scratch.column_top + c, out, step);
                   else
                     sum_block<T, false>(state, scratch.block, rows, key, q, row_sum,
                                         scratch.column_sum + c, scratch.column_top + c, out, step);
                 });
  add_columns(state, rank, tile, scratch);
  if (!state.mean) return;
  const int64_t height = tile.i1 - tile.i0;
  for (int64_t p = 0; p < state.z.panels(); ++p) {
    T* mean = state.mean_of(rank) + p * state.z.panel_step;
    for (int64_t q = tile.j0; q < tile.j1; q += kRows)
      multiply_add_rows<T, 1, kWeightStep<T>>(int(rows_at(q, tile.j1)),
                                              scratch.weights + (q - tile.j0),
                                              scratch.keys + p * kKeyStep<T>, height,
                                              mean + q * kPanel<T>);
  }
}

// Moves a running sum to a peak that covers `candidate` too.
inline void raise(double candidate, double* peak, double* sum) {
  if (!(candidate > *peak)) return;
  if (*sum > 0) *sum *= std::exp2(*peak - candidate);
  *peak = candidate;
}

// Online maximum, by query over all keys of the rank and by key over all queries: x of the tile
// first, then its exponentials relative to the peaks. key_peak and key_sum are the tile's keys'.
template <class T>
void online_tile(const ContrastForwardState<T>& state, int rank, const Tile& tile,
                 const ContrastScratch<T>& scratch, T* kept, double* key_peak, double* key_sum) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  const int64_t height = tile.i1 - tile.i0, width = tile.j1 - tile.j0;
  T* x = kept ? kept : scratch.tile;
  logits_of(state, tile, scratch, x);
  clear_columns(tile, scratch);
  T* row = scratch.row_sum;
  for (int64_t r = 0; r < height * L; ++r) row[r] = T(-__builtin_inf());
  visit_kept<T>(tile, [&](int64_t r, int64_t rows, int64_t q) {
    const T* from = x + kept_offset<T>(tile, r, q, rows);
    for (int64_t a = 0; a < rows; ++a)
      for (int h = 0; h < P; h += L) {
        const Vec<T> value = load_loose<T>(from + a * P + h);
        T *left = row + (r + a) * L, *above = scratch.column_top + (q - tile.j0) + h;
        const Vec<T> by_row = load<T>(left), by_column = load_loose<T>(above);
        store<T>(left, value > by_row ? value : by_row);
        store_loose<T>(above, value > by_column ? value : by_column);
      }
  });
  const int64_t at = rank * state.z.rows + tile.j0;
  T row_peak[kTile], column_peak[kTile];
  const auto finite = [](double peak) { return T(std::isinf(peak) ? 0 : peak); };
  for (int64_t r = 0; r < height; ++r) {
    T top = row[r * L];
    for (int l = 1; l < L; ++l) top = row[r * L + l] > top ? row[r * L + l] : top;
    raise(top, key_peak + r, key_sum + r);
    row_peak[r] = finite(key_peak[r]);
  }
  for (int64_t c = 0; c < width; ++c) {
    raise(scratch.column_top[c], state.peak + at + c, state.sum + at + c);
    column_peak[c] = finite(state.peak[at + c]);
  }
  std::memset(row, 0, size_t(height * L) * sizeof(T));
  visit_kept<T>(tile, [&](int64_t r, int64_t rows, int64_t q) {
    const T* from = x + kept_offset<T>(tile, r, q, rows);
    for (int64_t a = 0; a < rows; ++a)
      for (int h = 0; h < P; h += L) {
        const Vec<T> value = load_loose<T>(from + a * P + h);
        const int64_t c = q - tile.j0 + h;
        T *left = row + (r + a) * L, *above = scratch.column_sum + c;
        store<T>(left, load<T>(left) + exp2_flushed<T>(value - row_peak[r + a]));
        store_loose<T>(above, load_loose<T>(above) +
                                  exp2_flushed<T>(value - load_loose<T>(column_peak + c)));
      }
  });
  add_columns(state, rank, tile, scratch);
  for (int64_t r = 0; r < height; ++r) {
    double total = 0;
    for (int l = 0; l < L; ++l) total += double(row[r * L + l]);
    key_sum[r] += total;
  }
}

// log2-sum to the natural logarithm; nothing summed is log 0.
inline double natural(double sum, double peak) {
  if (std::isinf(peak) && peak > 0) return peak;
  return sum == 0 ? -__builtin_inf() : peak / kLog2e + std::log(sum);
}

// All queries against one tile of keys; then the keys' own log-denominators are known.
template <class T>
void forward_keys(const ContrastForwardState<T>& state, int rank, int64_t begin, int64_t end,
                  const ContrastScratch<T>& scratch, T* kept, int64_t* at, int64_t kept_end) {
  constexpr int L = kLanes<T>;
  const int64_t height = end - begin;
  double key_peak[kTile], key_sum[kTile];
  for (int64_t r = 0; r < height; ++r) key_peak[r] = -__builtin_inf(), key_sum[r] = 0;
  pack_keys(state.problem, begin, end, scratch.keys, scratch.raw);
  std::memset(scratch.row_sum, 0, size_t(height * L) * sizeof(T));
  state.query_tiles(begin, end, [&](const Tile& tile) {
    T* here = nullptr;
    if (kept && *at + tile.area() <= kept_end) {
      here = kept + *at;
      *at += tile.area();
    }
    if (state.bounded) bounded_tile(state, rank, tile, scratch, here);
    else online_tile(state, rank, tile, scratch, here, key_peak, key_sum);
  });
  if (!state.call->cols) return;
  T* cols = static_cast<T*>(state.call->cols);
  for (int64_t r = 0; r < height; ++r) {
    if (state.bounded) {
      key_peak[r] = -double(state.shift);
      for (int l = 0; l < L; ++l) key_sum[r] += double(scratch.row_sum[r * L + l]);
    }
    cols[begin + r] = T(natural(key_sum[r], key_peak[r]));
  }
}

// Queries [begin, end): the ranks' partial sums in their order.
template <class T>
void finish_queries(const ContrastForwardState<T>& state, int64_t begin, int64_t end) {
  const int64_t step = state.z.rows, width = state.problem.width;
  T *rows = static_cast<T*>(state.call->rows), *top = static_cast<T*>(state.call->top);
  T* mean = static_cast<T*>(state.call->mean);
  for (int64_t q = begin; q < end; ++q) {
    double sum = 0, peak = state.bounded ? -double(state.shift) : -__builtin_inf();
    T best = T(-__builtin_inf());
    for (int rank = 0; rank < state.ranks; ++rank) {
      double other = state.sum[rank * step + q];
      if (!state.bounded) {
        const double other_peak = state.peak[rank * step + q];
        raise(other_peak, &peak, &sum);
        other *= other == 0 ? 0 : std::exp2(other_peak - peak);
      }
      sum += other;
      const T candidate = state.top[rank * step + q];
      best = candidate > best ? candidate : best;
    }
    rows[q] = T(natural(sum, peak));
    top[q] = T(double(best) / kLog2e);
    if (!mean) continue;
    for (int64_t d = 0; d < width; ++d) {
      const int64_t at = d / kPanel<T> * state.z.panel_step + q * kPanel<T> + d % kPanel<T>;
      double total = 0;
      for (int rank = 0; rank < state.ranks; ++rank) total += double(state.mean_of(rank)[at]);
      mean[q * width + d] = sum == 0 ? T(0) : T(total / sum);
    }
  }
}

}  // namespace
