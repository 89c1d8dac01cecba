// The register block every op is built on: kRows x kPanel sums of products, held in registers.
#pragma once
#include "simd.h"

namespace {

template <class T, int R> struct Block {
  Vec<T> c[R][2];
};

// c[r][:] += sum_k a[r * RowStep + k * KStep] * b[k * kPanel + :]. The strides are compile-time
// constants so that each broadcast is one load with a constant displacement: a matrix is read
// along its rows (KStep 1) or down its columns (RowStep 1) without repacking.
template <class T, int R, int RowStep, int KStep>
FASTSSL_INLINE void accumulate(Block<T, R>& block, const T* a, const T* b, int64_t count) {
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k) {
    const Vec<T> b0 = load<T>(b), b1 = load<T>(b + kLanes<T>);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const T x = a[r * RowStep];
      block.c[r][0] += b0 * x;
      block.c[r][1] += b1 * x;
    }
    a += KStep;
    b += kPanel<T>;
  }
}

// out[r * kPanel + :] += the products above.
template <class T, int R, int RowStep, int KStep>
void multiply_add(const T* a, const T* b, int64_t count, T* out) {
  Block<T, R> block = {};
  accumulate<T, R, RowStep, KStep>(block, a, b, count);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    T* row = out + r * kPanel<T>;
    store<T>(row, load<T>(row) + block.c[r][0]);
    store<T>(row + kLanes<T>, load<T>(row + kLanes<T>) + block.c[r][1]);
  }
}

// The same for a ragged edge of `rows` < kRows.
template <class T, int RowStep, int KStep, int R = kRows>
FASTSSL_INLINE void multiply_add_rows(int rows, const T* a, const T* b, int64_t count, T* out) {
  if (rows == R) return multiply_add<T, R, RowStep, KStep>(a, b, count, out);
  if constexpr (R > 1) multiply_add_rows<T, RowStep, KStep, R - 1>(rows, a, b, count, out);
}

// out = the similarities of R rows with one panel of columns. Rows come from row panels (width
// kPanel, one panel every `panel_step`), columns from a transposed panel, both `panels` long.
template <class T, int R>
void similarity(const T* rows, int64_t panel_step, const T* columns, int64_t panels, T* out) {
  Block<T, R> block = {};
  for (int64_t p = 0; p < panels; ++p) {
    accumulate<T, R, kPanel<T>, 1>(block, rows + p * panel_step,
                                   columns + p * kPanel<T> * kPanel<T>, kPanel<T>);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    store<T>(out + r * kPanel<T>, block.c[r][0]);
    store<T>(out + r * kPanel<T> + kLanes<T>, block.c[r][1]);
  }
}

template <class T, int R = kRows>
FASTSSL_INLINE void similarity_rows(int rows, const T* a, int64_t panel_step, const T* columns,
                                    int64_t panels, T* out) {
  if (rows == R) return similarity<T, R>(a, panel_step, columns, panels, out);
  if constexpr (R > 1) similarity_rows<T, R - 1>(rows, a, panel_step, columns, panels, out);
}

}  // namespace
