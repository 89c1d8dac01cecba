// Queries and keys as the register block reads them. A tile's columns are queries, packed once; its
// rows are keys, packed tile by tile into scratch that stays in the cache, so that a queue of any
// length is read once and never copied whole.
#pragma once
#include "contrast.h"
#include "pack.h"
#include "schedule.h"

namespace {

// Rows of a tile of keys lie in panels, one row more than needed apart for the caches' sake.
template <class T> constexpr int64_t kKeyStep = (kTile + 8) * kPanel<T>;

template <class T>
void pack_query_block(const fastssl::ContrastProblem& problem, const UnitRows<T>& z, int64_t block,
                      T* unit, T* raw) {
  constexpr int64_t P = kPanel<T>;
  for (int64_t c = 0; c < P; ++c) {
    const int64_t i = block * P + c;
    T* out = unit + c * z.columns;
    if (i < problem.queries) {
      const T* row = read_row<T>(problem.q, problem.q_dtype, i, problem.width, raw);
      std::memcpy(out, row, size_t(problem.width) * sizeof(T));
    } else {
      std::memset(out, 0, size_t(z.columns) * sizeof(T));
    }
  }
  spread_block(z, block, unit);
}

// The share of a rank; `scratch` holds kPanel + 1 rows.
template <class T>
void pack_queries(const fastssl::ContrastProblem& problem, const UnitRows<T>& z, int rank,
                  int ranks, T* scratch) {
  std::memset(scratch, 0, size_t(kPanel<T> * z.columns) * sizeof(T));
  const int64_t blocks = z.rows / kPanel<T>;
  for (int64_t b = blocks * rank / ranks; b < blocks * (rank + 1) / ranks; ++b)
    pack_query_block(problem, z, b, scratch, scratch + kPanel<T> * z.columns);
}

// Keys [begin, end) into panels; what lies beyond the width is zero.
template <class T>
void pack_keys(const fastssl::ContrastProblem& problem, int64_t begin, int64_t end, T* panels,
               T* raw) {
  constexpr int64_t P = kPanel<T>;
  const int64_t whole = problem.width / P, rest = problem.width % P;
  for (int64_t r = begin; r < end; ++r) {
    const T* row = read_row<T>(problem.k, problem.k_dtype, r, problem.width, raw);
    T* out = panels + (r - begin) * P;
    for (int64_t p = 0; p < whole; ++p, out += kKeyStep<T>)
      for (int h = 0; h < P; h += kLanes<T>) store<T>(out + h, load_loose<T>(row + p * P + h));
    if (!rest) continue;
    std::memset(out, 0, P * sizeof(T));
    std::memcpy(out, row + whole * P, size_t(rest) * sizeof(T));
  }
}

}  // namespace
