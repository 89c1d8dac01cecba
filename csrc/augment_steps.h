// The steps of a colour jitter over a whole view, a chunk of pixels at a time.
#pragma once
#include "augment_plan.h"

namespace {

// Steps [begin, end) on every pixel, a chunk at a time; after(at, count) follows on each chunk.
template <class After>
void sweep(const Ops& ops, int begin, int end, Planes planes, int64_t pixels, const After& after) {
  for (int64_t at = 0; at < pixels; at += kChunk) {
    const int64_t count = at + kChunk < pixels ? kChunk : pixels - at;
    for (int k = begin; k < end; ++k) apply(ops.op[k], chunk_of(planes, at), count);
    after(at, count);
  }
}

// Steps up to contrast, whose mean grey is then known; returns the first step that is left.
inline int run_to_contrast(Ops& ops, Planes planes, int64_t pixels) {
  if (ops.contrast < 0) return 0;
  ColourOp& contrast = ops.op[ops.contrast];
  double total = 0;
  sweep(ops, 0, ops.contrast, planes, pixels, [&](int64_t at, int64_t count) {
    total += sum_grey(chunk_of(planes, at), count, contrast.red);
  });
  contrast.mean = float(total / double(pixels));
  return ops.contrast;
}

}  // namespace
