// dZ = W Z + W^T Z tile by tile with W = E (g_i / l_i + g_j / l_j), then the chain rule to raw rows.
#pragma once
#include "ntxent_tile.h"
#include "pool.h"
#include "threads.h"

namespace {

template <class T> struct BackwardState {
  const fastssl::NtxentBackward& call;
  UnitRows<T> z;
  Logits<T> logits;
  Schedule schedule;
  T* dz;            // the layout of z.row_panels; times grad_scale / tau gives the negatives' part
  T *weight, *lse;  // of a row: g / sum when bounded, else g and its log-denominator in base 2
  double* row_dot;  // z . dz
  double grad_scale;  // largest |g|: weights are relative to it, so that none overflows
  T* scratch;
  T* kept;

  int64_t rows() const { return call.problem.views * call.problem.samples; }
  double grad(int64_t i) const {
    const T* g = static_cast<const T*>(call.grad);
    switch (call.problem.reduction) {
      case fastssl::kMean: return double(g[0]) / double(rows());
      case fastssl::kSum: return double(g[0]);
      default: return double(g[i]);
    }
  }
};

template <class T> double largest_grad(const BackwardState<T>& state) {
  const int64_t count = state.call.problem.reduction == fastssl::kNone ? state.rows() : 1;
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(state.grad(i)));
  return largest > 0 ? largest : 1.0;
}

template <class T> void row_weights(const BackwardState<T>& state, int64_t begin, int64_t end) {
  const double bound = 1.0 / std::fabs(state.call.problem.temperature);
  const T* lse = static_cast<const T*>(state.call.lse);
  for (int64_t i = begin; i < end; ++i) {
    if (i >= state.rows()) {
      state.weight[i] = state.lse[i] = 0;
      continue;
    }
    const double g = state.grad(i) / state.grad_scale;
    state.weight[i] = T(state.logits.bounded ? g * std::exp(bound - double(lse[i])) : g);
    state.lse[i] = T(double(lse[i]) * kLog2e);
  }
}

// The weight of a vector of pairs (i, j...) from what is kept of it: E when bounded, else x.
template <class T>
FASTSSL_INLINE Vec<T> pair_weight(const BackwardState<T>& state, Vec<T> kept, int64_t i, int64_t j) {
  const Vec<T> weight_j = load<T>(state.weight + j);
  if (state.logits.bounded) return kept * (weight_j + state.weight[i]);
  return exp2_flushed<T>(kept - state.lse[i]) * state.weight[i] +
         exp2_flushed<T>(kept - load<T>(state.lse + j)) * weight_j;
}

template <class T>
void weights_from(const BackwardState<T>& state, const Tile& tile, const T* kept, T* weights) {
  visit_blocks<T>(tile, [&](int64_t i, int64_t rows, int64_t j) {
    const T* from = kept + block_offset<T>(tile, i, j, rows);
    for (int64_t r = 0; r < rows; ++r) {
      T* out = weights + (i - tile.i0 + r) * kWeightStep<T> + (j - tile.j0);
      for (int h = 0; h < kPanel<T>; h += kLanes<T>)
        store<T>(out + h,
                 pair_weight(state, load_loose<T>(from + r * kPanel<T> + h), i + r, j + h));
    }
  });
}

template <class T>
void weights_anew(const BackwardState<T>& state, const Tile& tile, const Scratch<T>& scratch) {
  visit_similarities(
      state.z, tile, state.logits.m, scratch.block,
      [&](int64_t i, int64_t rows, int64_t j, bool masked) {
        for (int64_t r = 0; r < rows; ++r) {
          T* out = scratch.weights + (i - tile.i0 + r) * kWeightStep<T> + (j - tile.j0);
          for (int h = 0; h < kPanel<T>; h += kLanes<T>) {
            const Vec<T> s = load<T>(scratch.block + r * kPanel<T> + h);
            Vec<T> e = exp2_normal<T>(s * state.logits.slope + state.logits.shift);
            if (masked) e = keep_pairs<T>(e, i + r, j + h, state.logits.m);
            store<T>(out + h, pair_weight(state, e, i + r, j + h));
          }
        }
      });
}

// Memory that will be read soon, a few cache lines at a time while the arithmetic goes on.
struct Ahead {
  const char *next, *end;
  FASTSSL_INLINE void step() {
    for (int line = 0; line < 5 && next < end; ++line, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// Both products of one tile. On the diagonal each stops where the triangle does.
template <class T>
void multiply_tile(const BackwardState<T>& state, const Tile& tile, const T* weights, Ahead ahead) {
  constexpr int S = kWeightStep<T>;
  const auto& z = state.z;
  for (int64_t p = 0; p < z.panels(); ++p) {
    T* dz = state.dz + p * z.panel_step;
    for (int64_t i = tile.i0; i < tile.i1; i += kRows) {
      const int64_t first = first_panel<T>(tile, i);
      ahead.step();
      multiply_add_rows<T, S, 1>(int(rows_at(i, tile.i1)), weights + (i - tile.i0) * S + first,
                                 z.row(tile.j0 + first, p), tile.j1 - tile.j0 - first,
                                 dz + i * kPanel<T>);
    }
    for (int64_t j = tile.j0; j < tile.j1; j += kRows) {
      const int64_t rows = rows_at(j, tile.j1);
      const int64_t last = tile.diagonal() && j + rows - 1 < tile.i1 ? j + rows - 1 : tile.i1;
      ahead.step();
      multiply_add_rows<T, 1, S>(int(rows), weights + (j - tile.j0), z.row(tile.i0, p),
                                 last - tile.i0, dz + j * kPanel<T>);
    }
  }
}

// The kept tiles of a rank lie one after the other, in the order in which it visits them.
template <class T>
void gradient_tile(const BackwardState<T>& state, const Tile& tile, const Scratch<T>& scratch,
                   const T* kept, const T* kept_end) {
  if (tile.diagonal())
    std::memset(scratch.weights, 0,
                size_t((tile.i1 - tile.i0) * kWeightStep<T>) * sizeof(T));
  Ahead ahead = {nullptr, nullptr};
  if (kept) {
    weights_from(state, tile, kept, scratch.weights);
    const T* next = kept + tile.area();
    const T* end = next + kTile * kTile;
    ahead = {(const char*)next, (const char*)(end < kept_end ? end : kept_end)};
  } else if (state.logits.bounded) {
    weights_anew(state, tile, scratch);
  } else {
    logit_tile(state.z, state.logits, tile, scratch.block, scratch.tile);
    weights_from(state, tile, scratch.tile, scratch.weights);
  }
  multiply_tile(state, tile, scratch.weights, ahead);
}

// The gradient of a row of zeros, about 1e12 times the upstream one, is no sign of overflow: it keeps
// its direction. NaN stays NaN.
inline void saturate(double* row, int64_t width) {
  constexpr double kLargest = 65504;
  for (int64_t d = 0; d < width; ++d) {
    if (row[d] > kLargest) row[d] = kLargest;
    if (row[d] < -kLargest) row[d] = -kLargest;
  }
}

// Row i of view v: positives, the projection that undoes the normalisation, the input's type.
template <class T> void finish_row(const BackwardState<T>& state, int64_t v, int64_t n, double* out) {
  constexpr int P = kPanel<T>;
  const auto& problem = state.call.problem;
  const int64_t i = v * problem.samples + n;
  const double inverse = 1.0 / problem.temperature, scale = state.grad_scale * inverse;
  for (int64_t p = 0; p < state.z.panels(); ++p) {
    const T* from = state.dz + p * state.z.panel_step + i * P;
    for (int c = 0; c < P; c += int(kWide))
      store_loose<double>(out + p * P + c, widen(from + c) * scale);
  }
  for (int64_t w = 0; w < problem.views; ++w) {
    if (w == v) continue;
    const int64_t j = w * problem.samples + n;
    const double pull = (state.grad(i) + state.grad(j)) * inverse / double(problem.views - 1);
    for (int64_t p = 0; p < state.z.panels(); ++p) {
      const T* z = state.z.row(j, p);
      for (int c = 0; c < P; c += int(kWide)) {
        double* to = out + p * P + c;
        store_loose<double>(to, load_loose<double>(to) - widen(z + c) * pull);
      }
    }
  }
  Vec<double> along = {};
  for (int64_t p = 0; p < state.z.panels(); ++p)
    for (int c = 0; c < P; c += int(kWide))
      along += load_loose<double>(out + p * P + c) * widen(state.z.row(i, p) + c);
  const double dot = sum_lanes<double>(along);
  state.row_dot[i] = dot;
  const double r = state.z.inverse_norm[i];
  const bool clamped = !(r < 1.0 / kNormFloor);
  const double project = clamped ? 0.0 : dot * r;  // a clamped norm is a constant
  for (int64_t p = 0; p < state.z.panels(); ++p)
    for (int c = 0; c < P; c += int(kWide)) {
      double* to = out + p * P + c;
      store_loose<double>(to, load_loose<double>(to) * r - widen(state.z.row(i, p) + c) * project);
    }
  if (clamped && problem.dtype == fastssl::kFloat16) saturate(out, problem.width);
  write_row(out, problem.width, problem.dtype, state.call.grad_rows, i);
}

// The loss depends on z and tau only through z_i . z_j / tau, so that (Euler) its derivative with
// respect to tau is -sum_i z_i . dz_i / (2 tau): no pass over the logits is needed.
template <class T> void finish_temperature(const BackwardState<T>& state) {
  double total[4] = {};
  for (int64_t i = 0; i < state.rows(); ++i) total[i & 3] += state.row_dot[i];
  *static_cast<T*>(state.call.grad_temperature) =
      T(-((total[0] + total[1]) + (total[2] + total[3])) /
        (2.0 * state.call.problem.temperature));
}

}  // namespace
