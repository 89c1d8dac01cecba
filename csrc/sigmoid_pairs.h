// What the C entry point hands to the sigmoid-loss kernels of one instruction set.
#pragma once
#include "ntxent.h"  // Dtype, ViewMemory

namespace fastssl {

// x_ij = scale * q_i . k_j + bias; the partner of query i is key i + diagonal, all others are not.
// "Accumulation type": double if q or k is float64, else float. Outputs may be null.
struct SigmoidPairs {
  ViewMemory q, k;
  int64_t queries, keys, width, diagonal;
  int q_dtype, k_dtype, dq_dtype, dk_dtype;
  int threads;
  int wide;  // whether to accumulate in double
  double scale, bias;
  const void* g;  // (queries), accumulation type: what a query's loss weighs in dk; null for 1
  void *rows, *by_scale, *by_bias;  // (queries), accumulation type; the last two only together
  void *dq, *dk;  // (queries, width) of each query's own loss; (keys, width) of the weighted sum
};

using SigmoidPairsKernel = int (*)(const SigmoidPairs&);  // 0, or 1 when memory ran out

SigmoidPairsKernel sigmoid_pairs_baseline();
SigmoidPairsKernel sigmoid_pairs_avx2();
SigmoidPairsKernel sigmoid_pairs_avx512();

}  // namespace fastssl
