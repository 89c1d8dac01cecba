// What the C entry points hand to the log-denominator kernels of one instruction set.
#pragma once
#include <cstdint>

#include "ntxent.h"  // Dtype, ViewMemory

namespace fastssl {

enum Keep : int { kKeepAll = 0, kKeepSame = 1, kKeepDifferent = 2 };

// x_ij = scale * q_i . k_j over the pairs that the ids keep; null ids are not asked for.
struct ContrastProblem {
  ViewMemory q, k;
  int64_t queries, keys, width;
  int q_dtype, k_dtype, keep, threads;
  int wide;  // whether to accumulate in double
  int pad;
  double scale;
  double bound;  // no |q_i . k_j| is larger; may be infinite
  const int32_t *q_label, *k_label, *q_row, *k_row;
};

struct ContrastForward {
  ContrastProblem problem;
  void *rows, *cols, *top;  // the accumulation type; cols may be null
  void* kept;               // E as far as it fits, for the backward; may be null
  int64_t kept_numel;
  void* mean;  // (queries, width), sum_j p_ij k_j; may be null
};

struct ContrastBackward {
  ContrastProblem problem;
  const void *g_rows, *g_cols, *rows, *cols;  // g_cols and cols may be null
  const void* kept;
  int64_t kept_numel;
  void *dq, *dk;  // in their input types; either may be null
  void* dscale;   // the accumulation type
};

// Both return 0, or 1 when memory ran out.
struct ContrastKernels {
  int (*forward)(const ContrastForward&);
  int (*backward)(const ContrastBackward&);
};

const ContrastKernels* contrast_baseline();
const ContrastKernels* contrast_avx2();
const ContrastKernels* contrast_avx512();

}  // namespace fastssl
