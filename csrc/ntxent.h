// What the C entry points hand to the kernels of one instruction set.
#pragma once
#include <cstdint>

namespace fastssl {

enum Dtype : int { kFloat64 = 0, kFloat32 = 1, kBfloat16 = 2, kFloat16 = 3 };
enum Reduction : int { kMean = 0, kSum = 1, kNone = 2 };

struct ViewMemory {
  const void* data;
  int64_t row_step, column_step;  // in elements
};

// M = views * samples rows; row v * samples + n is sample n of view v.
struct NtxentProblem {
  const ViewMemory* view;
  int64_t views, samples, width;
  int dtype;
  double temperature;
  int reduction;
  int threads;
};

struct NtxentForward {
  NtxentProblem problem;
  void *loss, *lse, *rnorm;  // the accumulation type: double for float64, else float
  void* kept;                // half of E as far as it fits, for the backward; may be null
  int64_t kept_numel;
};

struct NtxentBackward {
  NtxentProblem problem;
  const void *grad, *lse;  // the accumulation type
  const void* kept;
  int64_t kept_numel;
  void* grad_rows;         // (M, width) in the input type
  void* grad_temperature;  // the accumulation type
};

// What both return.
enum Status : int { kDone = 0, kNoMemory = 1, kForeignKept = 2 };

struct NtxentKernels {
  int (*forward)(const NtxentForward&);
  int (*backward)(const NtxentBackward&);
};

// One per instruction set that the compiler could build; see dispatch.cpp.
const NtxentKernels* ntxent_baseline();
const NtxentKernels* ntxent_avx2();
const NtxentKernels* ntxent_avx512();

}  // namespace fastssl
