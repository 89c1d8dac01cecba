// What the C entry point hands to the soft-target kernels of one instruction set.
#pragma once
#include "ntxent.h"

namespace fastssl {

enum SoftTargetsPass : int {
  kLogitsForward = 0,
  kLogitsBackward = 1,
  kGivenForward = 2,
  kGivenBackward = 3,
  kGivenInPlace = 4,
};

// N rows of C outputs. "Accumulation type": double if student or teacher is float64, else float.
struct SoftTargets {
  ViewMemory student, teacher;  // teacher: logits, or the target probabilities of a kGiven pass
  const void* centre;           // (C), accumulation type, subtracted from the teacher; may be null
  int64_t rows, columns;
  int student_dtype, teacher_dtype, threads;
  double student_scale, teacher_scale;  // reciprocal temperatures
  // Per row: the loss (N) and, of each softmax, its top and the log of its sum of exp(scale (x -
  // top)): (4, N); a kGiven pass keeps (3, N): top, log of the sum, sum of the targets.
  void *loss, *stats;
  void* marginal;                  // (C) mean target over the rows, accumulation type; may be null
  const void *g_loss, *g_marginal;  // (N) and (C) over N, accumulation type; the second may be null
  void *g_student, *g_teacher;      // (N, C) in the input types; the second may be null
};

using SoftTargetsKernel = int (*)(int pass, const SoftTargets&);  // 0, or 1 when memory ran out

SoftTargetsKernel soft_targets_baseline();
SoftTargetsKernel soft_targets_avx2();
SoftTargetsKernel soft_targets_avx512();

}  // namespace fastssl
