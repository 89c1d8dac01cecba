// What the C entry point hands to the queue write of one instruction set.
#pragma once
#include "ntxent.h"

namespace fastssl {

// Key n of N, normalised, goes to row (pointer + n) mod K of the ring; of N > K the last K stay.
struct Enqueue {
  ViewMemory keys;
  int64_t count, width;  // N, D
  void* rows;            // (K, D), contiguous
  int64_t capacity;      // K
  int64_t* pointer;      // where the next key goes; moved on by N
  int keys_dtype, rows_dtype, threads;
};

using EnqueueKernel = int (*)(const Enqueue&);  // 0, or 1 when memory ran out

EnqueueKernel enqueue_baseline();
EnqueueKernel enqueue_avx2();
EnqueueKernel enqueue_avx512();

}  // namespace fastssl
