// One tile of logits: rows are keys, columns queries; and which of its pairs count.
#pragma once
#include <cmath>

#include "contrast_pack.h"
#include "microkernel.h"
#include "ntxent_tile.h"  // Tile walks, kLog2e, kBoundedRange, kWeightStep

namespace {

constexpr double kWorkPerRank = 4e6;  // multiply-adds below which one more thread does not pay
constexpr int64_t kPartialBytes = int64_t(256) << 20;  // of the ranks' own sums for the queries

template <class T> int ranks_for(const fastssl::ContrastProblem& problem, const UnitRows<T>& z) {
  const double work = double(problem.queries) * double(problem.keys) * double(problem.width);
  int64_t ranks = problem.threads;
  if (double(ranks) > 1.0 + work / kWorkPerRank) ranks = int64_t(1.0 + work / kWorkPerRank);
  const int64_t partial = z.row_panel_elements() * int64_t(sizeof(T));
  if (ranks > kPartialBytes / partial) ranks = kPartialBytes / partial;
  if (ranks > problem.keys / kRows) ranks = problem.keys / kRows;
  if (ranks > kMaxRanks) ranks = kMaxRanks;
  return ranks < 1 ? 1 : int(ranks);
}

// Ids of queries and keys as lanes of the accumulation type. Absent ones are null.
template <class T> struct Lanes {
  using Int = typename Simd<T>::Int;
  const Int *q_label, *q_row;  // padded to whole panels
  const int32_t *k_label, *k_row;
  int keep;
  int64_t queries;

  bool any() const { return q_label || q_row; }
};

// Pairs of key r with the queries q, q + 1, ... that count.
template <class T>
FASTSSL_INLINE Ints<T> counted(const Lanes<T>& lanes, int64_t r, int64_t q) {
  using Int = typename Simd<T>::Int;
  const int64_t left = lanes.queries - q;
  Ints<T> lane;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = Int(l);
  Ints<T> yes = lane < Int(left < kLanes<T> ? (left > 0 ? left : 0) : kLanes<T>);
  if (lanes.q_label) {
    const Ints<T> same = *(const Ints<T>*)(lanes.q_label + q) == Int(lanes.k_label[r]);
    yes &= lanes.keep == fastssl::kKeepSame ? same : ~same;
  }
  if (lanes.q_row) yes &= *(const Ints<T>*)(lanes.q_row + q) != Int(lanes.k_row[r]);
  return yes;
}

// What every thread of a call shares. x = slope * q . k is the logit in base 2.
template <class T> struct ContrastState {
  const fastssl::ContrastProblem& problem;
  UnitRows<T> z;  // the queries
  Lanes<T> lanes;
  bool bounded;
  T slope, shift;
  int ranks;

  ContrastState(const fastssl::ContrastProblem& problem, const UnitRows<T>& z, int ranks)
      : problem(problem), z(z), lanes{}, ranks(ranks) {
    const double range = 2.0 * std::fabs(problem.scale) * problem.bound;
    bounded = range <= kBoundedRange;
    slope = T(problem.scale * kLog2e);
    shift = bounded ? T(-0.5 * range * kLog2e) : T(0);
  }
  int64_t key_edge(int rank) const { return problem.keys * rank / ranks; }

  // visit(tile) for all tiles of queries against the keys [begin, end), in order.
  template <class F> void query_tiles(int64_t begin, int64_t end, const F& visit) const {
    const Cut across(0, z.rows, kPanel<T>);
    for (int64_t b = 0; b < across.pieces; ++b)
      visit(Tile{begin, end, across.edge(b), across.edge(b + 1)});
  }
  // visit(begin, end) for the tiles of keys of a rank.
  template <class F> void key_tiles(int rank, const F& visit) const {
    const Cut down(key_edge(rank), key_edge(rank + 1), 1);
    for (int64_t a = 0; a < down.pieces; ++a) visit(down.edge(a), down.edge(a + 1));
  }
};

template <class T> struct ContrastScratch {
  T *keys, *weights, *tile, *key_grad, *row_sum, *column_sum, *column_top, *block, *raw;

  static int64_t elements(int64_t columns) {
    const int64_t panels = columns / kPanel<T>;
    return 2 * panels * kKeyStep<T> + kTile * kWeightStep<T> + kTile * kTile +
           kTile * kLanes<T> + 2 * kTile + kRows * kPanel<T> +
           round_up((kPanel<T> + 1) * columns, kPanel<T>);
  }
  ContrastScratch(T* memory, int64_t columns) {
    const int64_t panels = columns / kPanel<T>;
    keys = memory;
    key_grad = keys + panels * kKeyStep<T>;
    weights = key_grad + panels * kKeyStep<T>;
    tile = weights + kTile * kWeightStep<T>;
    row_sum = tile + kTile * kTile;
    column_sum = row_sum + kTile * kLanes<T>;
    column_top = column_sum + kTile;
    block = column_top + kTile;
    raw = block + kRows * kPanel<T>;
  }
};

// visit(r, rows, q, masked) with `block` = q . k of `rows` keys from r (relative to the tile's
// first) with a panel of queries from q on; `masked` blocks hold pairs that may not count.
template <class T, class F>
void visit_products(const ContrastState<T>& state, const Tile& tile, const T* keys, T* block,
                    const F& visit) {
  const UnitRows<T>& z = state.z;
  int64_t band = kRowBytes / (z.columns * int64_t(sizeof(T))) / kRows * kRows;
  if (band < kRows) band = kRows;
  const int64_t height = tile.i1 - tile.i0;
  for (int64_t top = 0; top < height; top += band) {
    const int64_t bottom = top + band < height ? top + band : height;
    for (int64_t q = tile.j0; q < tile.j1; q += kPanel<T>) {
      const bool masked = state.lanes.any() || q + kPanel<T> > state.problem.queries;
      for (int64_t r = top; r < bottom; r += kRows) {
        const int64_t rows = rows_at(r, bottom);
        similarity_rows<T>(int(rows), keys + r * kPanel<T>, kKeyStep<T>, z.column(q), z.panels(),
                           block);
        visit(r, rows, q, masked);
      }
    }
  }
}

// Where the block at (r, q) lies in a tile that is kept block by block.
template <class T>
FASTSSL_INLINE int64_t kept_offset(const Tile& tile, int64_t r, int64_t q, int64_t rows) {
  return r * (tile.j1 - tile.j0) + (q - tile.j0) * rows;
}

// The blocks of a kept tile, without computing.
template <class T, class F> void visit_kept(const Tile& tile, const F& visit) {
  const int64_t height = tile.i1 - tile.i0;
  for (int64_t r = 0; r < height; r += kRows)
    for (int64_t q = tile.j0; q < tile.j1; q += kPanel<T>) visit(r, rows_at(r, height), q);
}

// x of a whole tile into `out`, -inf where a pair does not count; the largest by query.
template <class T>
void logits_of(const ContrastState<T>& state, const Tile& tile, const ContrastScratch<T>& scratch,
               T* out) {
  constexpr int L = kLanes<T>;
  const Vec<T> never = splat<T>(T(-__builtin_inf()));
  visit_products(state, tile, scratch.keys, scratch.block,
                 [&](int64_t r, int64_t rows, int64_t q, bool masked) {
                   T* x = out + kept_offset<T>(tile, r, q, rows);
                   for (int64_t a = 0; a < rows; ++a)
                     for (int h = 0; h < kPanel<T>; h += L) {
                       Vec<T> value = load<T>(scratch.block + a * kPanel<T> + h) * state.slope;
                       if (masked)
                         value = select<T>(counted(state.lanes, tile.i0 + r + a, q + h), value,
                                           never);
                       store_loose<T>(x + a * kPanel<T> + h, value);
                     }
                 });
}

// With the tile's weights W (keys x queries): dq += W^T k and key_grad += W q; null where unwanted.
template <class T>
void multiply_pairs(const UnitRows<T>& z, const Tile& tile, const ContrastScratch<T>& scratch,
                    T* dq, T* key_grad) {
  constexpr int S = kWeightStep<T>;
  const int64_t height = tile.i1 - tile.i0, width = tile.j1 - tile.j0;
  for (int64_t p = 0; p < z.panels(); ++p) {
    for (int64_t q = tile.j0; dq && q < tile.j1; q += kRows)
      multiply_add_rows<T, 1, S>(int(rows_at(q, tile.j1)), scratch.weights + (q - tile.j0),
                                 scratch.keys + p * kKeyStep<T>, height,
                                 dq + p * z.panel_step + q * kPanel<T>);
    for (int64_t r = 0; key_grad && r < height; r += kRows)
      multiply_add_rows<T, S, 1>(int(rows_at(r, height)), scratch.weights + r * S,
                                 z.row(tile.j0, p), width,
                                 key_grad + p * kKeyStep<T> + r * kPanel<T>);
  }
}

// A row of panels, scaled, in the input's type.
template <class T>
void write_scaled(const T* panels, int64_t panel_step, int64_t width, double scale, int dtype,
                  double* buffer, void* out, int64_t index) {
  for (int64_t d = 0; d < width; ++d)
    buffer[d] = scale * double(panels[d / kPanel<T> * panel_step + d % kPanel<T>]);
  write_row(buffer, width, dtype, out, index);
}

}  // namespace
