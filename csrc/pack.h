// Raw embeddings in, unit rows out, in the two layouts that the register block reads.
#pragma once
#include <cmath>

#include "convert.h"
#include "microkernel.h"

namespace {

constexpr double kNormFloor = 1e-12;  // F.normalize's eps

FASTSSL_INLINE int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Rows beyond M and columns beyond the width are zeros.
template <class T> struct UnitRows {
  int64_t rows;     // M rounded up to the panel
  int64_t columns;  // the width rounded up to the panel
  int64_t panel_step;  // from one row panel to the next; not a power of two, for the caches' sake
  T* row_panels;     // [columns / kPanel][rows][kPanel]
  T* column_panels;  // [rows / kPanel][columns][kPanel]: the same, transposed block by block
  double* inverse_norm;

  static UnitRows shape(int64_t m, int64_t width) {
    UnitRows z = {};
    z.rows = round_up(m, kPanel<T>);
    z.columns = round_up(width, kPanel<T>);
    z.panel_step = (round_up(z.rows, 64) + 8) * kPanel<T>;
    return z;
  }
  int64_t panels() const { return columns / kPanel<T>; }
  int64_t row_panel_elements() const { return panels() * panel_step; }
  T* row(int64_t i, int64_t panel) const {
    return row_panels + panel * panel_step + i * kPanel<T>;
  }
  const T* column(int64_t j) const { return column_panels + j * columns; }
};

// Half a vector of floats beside a whole vector of doubles.
typedef float Narrow __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
constexpr int64_t kWide = kLanes<double>;

FASTSSL_INLINE Vec<double> widen(const float* x) {
  return __builtin_convertvector(*(const Narrow*)x, Vec<double>);
}
FASTSSL_INLINE Vec<double> widen(const double* x) { return load_loose<double>(x); }
FASTSSL_INLINE void narrow(float* out, Vec<double> x) {
  *(Narrow*)out = __builtin_convertvector(x, Narrow);
}
FASTSSL_INLINE void narrow(double* out, Vec<double> x) { store_loose<double>(out, x); }

template <class T> double sum_of_squares(const T* row, int64_t width, double scale) {
  Vec<double> even = {}, odd = {};
  int64_t d = 0;
  for (; d + 2 * kWide <= width; d += 2 * kWide) {
    const Vec<double> a = widen(row + d) * scale, b = widen(row + d + kWide) * scale;
    even += a * a;
    odd += b * b;
  }
  double total = sum_lanes<double>(even + odd);
  for (; d < width; ++d) total += (double(row[d]) * scale) * (double(row[d]) * scale);
  return total;
}

// A double holds the square of any float; doubles themselves are scaled by their largest.
inline double norm_of(const float* row, int64_t width) {
  return std::sqrt(sum_of_squares(row, width, 1.0));
}
inline double norm_of(const double* row, int64_t width) {
  double largest = 0;
  for (int64_t d = 0; d < width; ++d) largest = std::fmax(largest, std::fabs(row[d]));
  if (!(largest > 0) || std::isinf(largest)) return std::sqrt(sum_of_squares(row, width, 1.0));
  const int exponent = std::ilogb(largest);
  return std::ldexp(std::sqrt(sum_of_squares(row, width, std::ldexp(1.0, -exponent))), exponent);
}

// out = row / max(|row|, eps); a row that is not finite becomes all NaN.
template <class T> double normalise(const T* row, int64_t width, T* out) {
  const double norm = norm_of(row, width);
  if (!(norm <= 1.7976931348623157e308)) {
    for (int64_t d = 0; d < width; ++d) out[d] = T(__builtin_nan(""));
    return __builtin_nan("");
  }
  const double inverse = 1.0 / (norm > kNormFloor ? norm : kNormFloor);
  int64_t d = 0;
  for (; d + kWide <= width; d += kWide) narrow(out + d, widen(row + d) * inverse);
  for (; d < width; ++d) out[d] = T(double(row[d]) * inverse);
  return inverse;
}

// kPanel rows of z.columns, `unit`, to their places in both layouts.
template <class T> void spread_block(const UnitRows<T>& z, int64_t block, const T* unit) {
  constexpr int64_t P = kPanel<T>;
  for (int64_t p = 0; z.row_panels && p < z.panels(); ++p)
    for (int64_t c = 0; c < P; ++c)
      std::memcpy(z.row(block * P + c, p), unit + c * z.columns + p * P, P * sizeof(T));
  if (!z.column_panels) return;
  T* transposed = z.column_panels + block * P * z.columns;
  for (int64_t d = 0; d < z.columns; d += kLanes<T>)
    for (int64_t c = 0; c < P; c += kLanes<T>)
      transpose_square<T>(unit + c * z.columns + d, z.columns, transposed + d * P + c, P);
}

// Rows [block * kPanel, ...): `unit` holds kPanel rows of z.columns, zero beyond the width, and
// `raw` one row.
template <class T>
void pack_block(const fastssl::NtxentProblem& problem, const UnitRows<T>& z, int64_t block, T* unit,
                T* raw) {
  constexpr int64_t P = kPanel<T>;
  const int64_t m = problem.views * problem.samples;
  for (int64_t c = 0; c < P; ++c) {
    const int64_t i = block * P + c;
    T* out = unit + c * z.columns;
    if (i < m) {
      const auto& view = problem.view[i / problem.samples];
      const T* row = read_row<T>(view, problem.dtype, i % problem.samples, problem.width, raw);
      z.inverse_norm[i] = normalise(row, problem.width, out);
    } else {
      for (int64_t d = 0; d < z.columns; ++d) out[d] = 0;
      z.inverse_norm[i] = 0;
    }
  }
  spread_block(z, block, unit);
}

template <class T>
void pack_rows(const fastssl::NtxentProblem& problem, const UnitRows<T>& z, int rank, int ranks,
               T* scratch) {
  T* raw = scratch + kPanel<T> * z.columns;
  std::memset(scratch, 0, size_t(kPanel<T> * z.columns) * sizeof(T));
  const int64_t blocks = z.rows / kPanel<T>;
  for (int64_t b = blocks * rank / ranks; b < blocks * (rank + 1) / ranks; ++b)
    pack_block<T>(problem, z, b, scratch, raw);
}

}  // namespace
