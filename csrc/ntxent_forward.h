// Sums of exponentials over the upper triangle, and the loss.
#pragma once
#include "ntxent_tile.h"
#include "pool.h"
#include "threads.h"

namespace {

template <class T> struct ForwardState {
  const fastssl::NtxentForward& call;
  UnitRows<T> z;
  Logits<T> logits;
  Schedule schedule;
  double *sum, *peak, *row_loss;  // of a row: sum of 2^(x - peak); peak is used when unbounded
  T* scratch;
  bool stream;  // the kept half of E does not fit the caches

  int64_t rows() const { return call.problem.views * call.problem.samples; }
};

template <class T, bool Masked>
FASTSSL_INLINE void add_block(const Logits<T>& logits, const T* block, int64_t rows, int64_t i,
                              int64_t j, T* row_sum, T* column_sum, T* kept, bool stream) {
  constexpr int L = kLanes<T>;
  Vec<T> column0 = load<T>(column_sum), column1 = load<T>(column_sum + L);
  for (int64_t r = 0; r < rows; ++r) {
    const T* s = block + r * kPanel<T>;
    Vec<T> e0 = exp2_normal<T>(load<T>(s) * logits.slope + logits.shift);
    Vec<T> e1 = exp2_normal<T>(load<T>(s + L) * logits.slope + logits.shift);
    if (Masked) {
      e0 = keep_pairs<T>(e0, i + r, j, logits.m);
      e1 = keep_pairs<T>(e1, i + r, j + L, logits.m);
    }
    column0 += e0;
    column1 += e1;
    store<T>(row_sum + r * L, load<T>(row_sum + r * L) + (e0 + e1));
    if (!kept) continue;
    T* out = kept + r * kPanel<T>;
    if (stream) {
      store_stream<T>(out, e0);
      store_stream<T>(out + L, e1);
    } else {
      store_loose<T>(out, e0);
      store_loose<T>(out + L, e1);
    }
  }
  store<T>(column_sum, column0);
  store<T>(column_sum + L, column1);
}

// Bounded logits: one exponential per pair, partial sums merge by addition.
template <class T>
void bounded_tile(const ForwardState<T>& state, const Tile& tile, const Scratch<T>& scratch,
                  T* kept) {
  constexpr int L = kLanes<T>;
  const int64_t height = tile.i1 - tile.i0, width = tile.j1 - tile.j0;
  std::memset(scratch.row_sum, 0, size_t(height * L) * sizeof(T));
  std::memset(scratch.column_sum, 0, size_t(width) * sizeof(T));
  visit_similarities(
      state.z, tile, state.logits.m, scratch.block,
      [&](int64_t i, int64_t rows, int64_t j, bool masked) {
        T* row_sum = scratch.row_sum + (i - tile.i0) * L;
        T* column_sum = scratch.column_sum + (j - tile.j0);
        T* out = kept ? kept + block_offset<T>(tile, i, j, rows) : nullptr;
        if (masked)
          add_block<T, true>(state.logits, scratch.block, rows, i, j, row_sum, column_sum, out,
                             state.stream);
        else
          add_block<T, false>(state.logits, scratch.block, rows, i, j, row_sum, column_sum, out,
                              state.stream);
      });
  for (int64_t i = 0; i < height; ++i) {
    double total = 0;
    for (int l = 0; l < L; ++l) total += double(scratch.row_sum[i * L + l]);
    state.sum[tile.i0 + i] += total;
  }
  for (int64_t j = 0; j < width; ++j) state.sum[tile.j0 + j] += double(scratch.column_sum[j]);
}

// x = slope * s into `out`, -inf where a pair must not count.
template <class T>
void logit_tile(const UnitRows<T>& z, const Logits<T>& logits, const Tile& tile, T* block, T* out) {
  constexpr int L = kLanes<T>;
  const Vec<T> never = splat<T>(T(-__builtin_inf()));
  visit_similarities(z, tile, logits.m, block,
                     [&](int64_t i, int64_t rows, int64_t j, bool masked) {
                       T* x = out + block_offset<T>(tile, i, j, rows);
                       for (int64_t r = 0; r < rows; ++r)
                         for (int h = 0; h < kPanel<T>; h += L) {
                           Vec<T> value = load<T>(block + r * kPanel<T> + h) * logits.slope;
                           if (masked)
                             value = select<T>(pairs<T>(i + r, j + h, logits.m), value, never);
                           store_loose<T>(x + r * kPanel<T> + h, value);
                         }
                     });
}

// Moves a row's running sum to a peak that covers `candidate` too.
inline void raise_peak(double candidate, double* peak, double* sum) {
  if (!(candidate > *peak)) return;
  if (*sum > 0) *sum *= std::exp2(*peak - candidate);
  *peak = candidate;
}

// Online maximum, by row and by column: two exponentials per pair. A tile's peaks go to row_peak
// and column_peak, then its sums are taken relative to the raised ones.
template <class T>
void online_tile(const ForwardState<T>& state, const Tile& tile, const Scratch<T>& scratch,
                 T* kept) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  const int64_t height = tile.i1 - tile.i0, width = tile.j1 - tile.j0;
  T* x = kept ? kept : scratch.tile;
  logit_tile(state.z, state.logits, tile, scratch.block, x);
  T *row = scratch.row_sum, *column = scratch.column_sum;
  const auto peaks = [](Vec<T> a, Vec<T> b) { return a > b ? a : b; };
  for (int64_t i = 0; i < height * L; ++i) row[i] = T(-__builtin_inf());
  for (int64_t j = 0; j < width; ++j) column[j] = T(-__builtin_inf());
  visit_blocks<T>(tile, [&](int64_t i, int64_t rows, int64_t j) {
    const T* from = x + block_offset<T>(tile, i, j, rows);
    for (int64_t r = 0; r < rows; ++r)
      for (int h = 0; h < P; h += L) {
        const Vec<T> value = load_loose<T>(from + r * P + h);
        T *a = row + (i - tile.i0 + r) * L, *b = column + (j - tile.j0) + h;
        store<T>(a, peaks(value, load<T>(a)));
        store_loose<T>(b, peaks(value, load_loose<T>(b)));
      }
  });
  for (int64_t i = 0; i < height; ++i) {
    T top = row[i * L];
    for (int l = 1; l < L; ++l) top = row[i * L + l] > top ? row[i * L + l] : top;
    raise_peak(top, &state.peak[tile.i0 + i], &state.sum[tile.i0 + i]);
  }
  for (int64_t j = 0; j < width; ++j)
    raise_peak(column[j], &state.peak[tile.j0 + j], &state.sum[tile.j0 + j]);
  // Only now: a row of a diagonal tile is one of its columns too.
  T row_peak[kTile], column_peak[kTile];
  const auto finite = [](double peak) { return T(std::isinf(peak) ? 0 : peak); };
  for (int64_t i = 0; i < height; ++i) row_peak[i] = finite(state.peak[tile.i0 + i]);
  for (int64_t j = 0; j < width; ++j) column_peak[j] = finite(state.peak[tile.j0 + j]);
  std::memset(row, 0, size_t(height * L) * sizeof(T));
  std::memset(column, 0, size_t(width) * sizeof(T));
  visit_blocks<T>(tile, [&](int64_t i, int64_t rows, int64_t j) {
    const T* from = x + block_offset<T>(tile, i, j, rows);
    for (int64_t r = 0; r < rows; ++r)
      for (int h = 0; h < P; h += L) {
        const Vec<T> value = load_loose<T>(from + r * P + h);
        T *a = row + (i - tile.i0 + r) * L, *b = column + (j - tile.j0) + h;
        store<T>(a, load<T>(a) + exp2_flushed<T>(value - row_peak[i - tile.i0 + r]));
        store_loose<T>(b, load_loose<T>(b) + exp2_flushed<T>(
                                                 value - load_loose<T>(column_peak + (j - tile.j0) + h)));
      }
  });
  for (int64_t i = 0; i < height; ++i) {
    double total = 0;
    for (int l = 0; l < L; ++l) total += double(row[i * L + l]);
    state.sum[tile.i0 + i] += total;
  }
  for (int64_t j = 0; j < width; ++j) state.sum[tile.j0 + j] += double(column[j]);
}

template <class T> double dot_rows(const UnitRows<T>& z, int64_t a, int64_t b) {
  Vec<double> sum = {};
  for (int64_t p = 0; p < z.panels(); ++p) {
    const T *x = z.row(a, p), *y = z.row(b, p);
    for (int c = 0; c < kPanel<T>; c += int(kWide)) sum += widen(x + c) * widen(y + c);
  }
  return sum_lanes<double>(sum);
}

// lse, 1/norm and the loss of the rows of samples [begin, end).
template <class T> void finish_samples(const ForwardState<T>& state, int64_t begin, int64_t end) {
  const auto& problem = state.call.problem;
  const double inverse = 1.0 / problem.temperature;
  const double bound = std::fabs(inverse);
  T* lse = static_cast<T*>(state.call.lse);
  T* rnorm = static_cast<T*>(state.call.rnorm);
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t v = 0; v < problem.views; ++v) state.row_loss[v * problem.samples + n] = 0;
    for (int64_t v = 0; v < problem.views; ++v) {
      const int64_t i = v * problem.samples + n;
      for (int64_t w = v + 1; w < problem.views; ++w) {
        const int64_t j = w * problem.samples + n;
        const double s = dot_rows(state.z, i, j) * inverse / double(problem.views - 1);
        state.row_loss[i] -= s;
        state.row_loss[j] -= s;
      }
      const double shift = state.logits.bounded ? bound : state.peak[i] / kLog2e;
      const double log_sum = shift + std::log(state.sum[i]);
      lse[i] = T(log_sum);
      rnorm[i] = T(state.z.inverse_norm[i]);
      state.row_loss[i] += log_sum;
    }
  }
}

template <class T> void finish_loss(const ForwardState<T>& state) {
  const int64_t m = state.rows();
  T* loss = static_cast<T*>(state.call.loss);
  if (state.call.problem.reduction == fastssl::kNone) {
    for (int64_t i = 0; i < m; ++i) loss[i] = T(state.row_loss[i]);
    return;
  }
  double total[4] = {};
  for (int64_t i = 0; i < m; ++i) total[i & 3] += state.row_loss[i];
  const double sum = (total[0] + total[1]) + (total[2] + total[3]);
  loss[0] = T(state.call.problem.reduction == fastssl::kMean ? sum / double(m) : sum);
}

}  // namespace
