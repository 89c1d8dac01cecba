// One tile of the similarity matrix, block by block, and what its logits become.
#pragma once
#include <cmath>

#include "pack.h"
#include "schedule.h"

namespace {

constexpr double kLog2e = 1.4426950408889634074;
constexpr double kBoundedRange = 80.0;  // exp(-80) is still a normal float
constexpr int64_t kRowBytes = int64_t(1) << 17;  // rows of a tile that stay in the L2 cache

// W is stored with one cache line more than kTile, so that its columns spread over the cache sets.
template <class T> constexpr int kWeightStep = int(kTile + 64 / sizeof(T));

// Logits in base 2: x = slope * s. When bounded, |s| <= 1 makes the largest possible logit a shift
// for every row at once, and exponentials of one tile serve its rows and its columns.
template <class T> struct Logits {
  bool bounded;
  T slope, shift;
  int64_t m;

  Logits(double temperature, int64_t m) : m(m) {
    bounded = 2.0 / std::fabs(temperature) <= kBoundedRange;
    slope = T(kLog2e / temperature);
    shift = bounded ? T(-kLog2e / std::fabs(temperature)) : T(0);
  }
};

template <class T> struct Scratch {
  T *weights, *tile, *row_sum, *column_sum, *block, *pack;

  static int64_t elements(int64_t columns) {
    return kTile * kWeightStep<T> + kTile * kTile + kTile * kLanes<T> + kTile +
           kRows * kPanel<T> + round_up((kPanel<T> + 1) * columns, kPanel<T>);
  }
  explicit Scratch(T* memory) {
    weights = memory;
    tile = weights + kTile * kWeightStep<T>;
    row_sum = tile + kTile * kTile;
    column_sum = row_sum + kTile * kLanes<T>;
    block = column_sum + kTile;
    pack = block + kRows * kPanel<T>;
  }
};

// First column panel (relative to the tile) that reaches above the diagonal for rows from i on.
template <class T> FASTSSL_INLINE int64_t first_panel(const Tile& tile, int64_t i) {
  return tile.diagonal() ? (i - tile.i0 + 1) / kPanel<T> * kPanel<T> : 0;
}

// Blocks lie one after the other: panels of kRows rows, in each of them the column panels.
template <class T>
FASTSSL_INLINE int64_t block_offset(const Tile& tile, int64_t i, int64_t j, int64_t rows) {
  return (i - tile.i0) * (tile.j1 - tile.j0) + (j - tile.j0) * rows;
}

FASTSSL_INLINE int64_t rows_at(int64_t i, int64_t end) {
  return end - i < kRows ? end - i : kRows;
}

// visit(i, rows, j, masked) with scratch.block = the similarities of the block at (i, j). Blocks
// wholly below the diagonal are left out; `masked` ones hold pairs that must not count.
template <class T, class F>
void visit_similarities(const UnitRows<T>& z, const Tile& tile, int64_t m, T* block,
                        const F& visit) {
  int64_t band = kRowBytes / (z.columns * int64_t(sizeof(T))) / kRows * kRows;
  if (band < kRows) band = kRows;
  for (int64_t top = tile.i0; top < tile.i1; top += band) {
    const int64_t bottom = top + band < tile.i1 ? top + band : tile.i1;
    for (int64_t j = tile.j0; j < tile.j1; j += kPanel<T>) {
      for (int64_t i = top; i < bottom && i < j + kPanel<T> - 1; i += kRows) {
        const int64_t rows = rows_at(i, bottom);
        similarity_rows<T>(int(rows), z.row(i, 0), z.panel_step, z.column(j), z.panels(), block);
        visit(i, rows, j, j < i + rows || j + kPanel<T> > m);
      }
    }
  }
}

// The same order without computing: visit(i, rows, j) for every block that exists.
template <class T, class F> void visit_blocks(const Tile& tile, const F& visit) {
  for (int64_t i = tile.i0; i < tile.i1; i += kRows) {
    const int64_t rows = rows_at(i, tile.i1);
    for (int64_t j = tile.j0 + first_panel<T>(tile, i); j < tile.j1; j += kPanel<T>)
      visit(i, rows, j);
  }
}

// Pairs i < j < m, of which each counts once.
template <class T> FASTSSL_INLINE Ints<T> pairs(int64_t i, int64_t j, int64_t m) {
  using Int = typename Simd<T>::Int;
  const int64_t above = i - j > -1 ? i - j : -1;
  const int64_t below = m - j < kPanel<T> ? m - j : kPanel<T>;
  Ints<T> lane;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = Int(l);
  return (lane > Int(above)) & (lane < Int(below));
}

template <class T> FASTSSL_INLINE Vec<T> keep_pairs(Vec<T> x, int64_t i, int64_t j, int64_t m) {
  return (Vec<T>)((Ints<T>)x & pairs<T>(i, j, m));
}

}  // namespace
