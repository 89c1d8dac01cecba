// One view's gradient, back through every stage to its row of the table and to its image. The view
// is rendered again; steps of the jitter are recomputed a chunk at a time and never kept whole.
#pragma once
#include "augment_colour_backward.h"
#include "augment_crop_backward.h"
#include "augment_space_backward.h"
#include "augment_steps.h"
#include "augment_store.h"

namespace {

FASTSSL_INLINE void copy_chunk(Chunk from, Chunk to, int64_t count) {
  const size_t bytes = size_t(round_up(count, kWide)) * sizeof(float);
  std::memcpy(to.r, from.r, bytes);
  std::memcpy(to.g, from.g, bytes);
  std::memcpy(to.b, from.b, bytes);
}

inline void copy_planes(Planes from, Planes to, int64_t pixels) {
  for (int c = 0; c < 3; ++c)
    std::memcpy(to[c], from[c], size_t(round_up(pixels, 16)) * sizeof(float));
}

// The mean grey that contrast sees, without changing x.
inline void find_mean(Ops& ops, Planes x, int64_t pixels, float* chunk) {
  if (ops.contrast < 0) return;
  ColourOp& contrast = ops.op[ops.contrast];
  const Chunk copy{chunk, chunk + kBackChunk, chunk + 2 * kBackChunk};
  double total = 0;
  for (int64_t at = 0; at < pixels; at += kBackChunk) {
    const int64_t count = at + kBackChunk < pixels ? kBackChunk : pixels - at;
    Chunk here = chunk_of(x, at);
    if (ops.contrast > 0) copy_chunk(here, copy, count), here = copy;
    for (int k = 0; k < ops.contrast; ++k) apply(ops.op[k], here, count);
    total += sum_grey(here, count, contrast.red);
  }
  contrast.mean = float(total / double(pixels));
}

// Adds a constant times the weights of grey, to the pixels alone.
inline void add_grey(Chunk g, int64_t count, float red, float constant) {
  for (int64_t i = 0; i < count; ++i) {
    g.r[i] += constant * red;
    g.g[i] += constant * kGreen;
    g.b[i] += constant * kBlue;
  }
}

// Back through steps [begin, end), whose input is step 0's x; returns the gradient by contrast's
// mean. `constant`: gradient by the grey of every pixel of the output, added first.
inline double back_steps(const Ops& ops, int begin, int end, Planes x, Planes g, int64_t pixels,
                         double constant, float* chunks, double* by) {
  double by_mean = 0;
  const auto slot = [chunks](int k) {
    float* at = chunks + k * 3 * kBackChunk;
    return Chunk{at, at + kBackChunk, at + 2 * kBackChunk};
  };
  for (int64_t at = 0; at < pixels; at += kBackChunk) {
    const int64_t count = at + kBackChunk < pixels ? kBackChunk : pixels - at;
    const Chunk here = chunk_of(g, at);
    copy_chunk(chunk_of(x, at), slot(0), count);
    for (int k = 0; k < begin; ++k) apply(ops.op[k], slot(0), count);
    for (int k = begin; k + 1 < end; ++k) {
      copy_chunk(slot(k - begin), slot(k - begin + 1), count);
      apply(ops.op[k], slot(k - begin + 1), count);
    }
    if (constant != 0) add_grey(here, count, ops.op[0].red, float(constant));
    for (int k = end - 1; k >= begin; --k) {
      const FactorGradient found = back_step(ops.op[k], slot(k - begin), here, count);
      if (ops.value[k] >= 0) by[ops.value[k]] += found.factor;
      by_mean += found.mean;
    }
  }
  return by_mean;
}

inline void back_colour(const Ops& ops, Planes x, Planes g, int64_t pixels, float* chunks, double* by) {
  if (ops.count == 0) return;
  if (ops.contrast < 0) {
    back_steps(ops, 0, ops.count, x, g, pixels, 0, chunks, by);
    return;
  }
  const double mean = back_steps(ops, ops.contrast, ops.count, x, g, pixels, 0, chunks, by);
  const double constant = mean / double(pixels);
  if (ops.contrast > 0) {
    back_steps(ops, 0, ops.contrast, x, g, pixels, constant, chunks, by);
  } else {
    add_grey(chunk_of(g, 0), pixels, ops.op[0].red, float(constant));
  }
}

// Back through everything between the views and the blur's input; false: nothing is left of the
// gradient, since a stage on the way is constant.
inline bool back_tone(const AugmentCall& call, const Plan& plan, Planes x, Scratch& s, double* by) {
  const int64_t size = call.size, pixels = size * size;
  const Planes g = s.planes[kGradient];
  if (plan.runs(fastssl::kErase)) {
    const float nothing[3] = {};
    fill_rectangle(g, size, plan.erased, nothing, by + fastssl::kEraseRed);
  }
  if (plan.runs(fastssl::kPosterize | fastssl::kEqualize)) return false;
  const bool blurs = plan.runs(fastssl::kBlur), solarizes = plan.runs(fastssl::kSolarizeStage);
  if (!blurs && !solarizes) return true;
  const Planes before = s.planes[kBlurred], after = s.planes[kSpare];
  copy_planes(x, before, pixels);
  sweep(plan.colour, 0, plan.colour.count, before, pixels, [](int64_t, int64_t) {});
  Gauss gaussian = {};
  if (blurs)
    gaussian = gauss(plan.values[fastssl::kSigma], blur_half(call), s.blur_weight, s.blur_slope);
  if (solarizes) {
    copy_planes(before, after, pixels);
    for (int c = 0; c < 3 && gaussian.half > 0; ++c) blur_plane(after[c], size, gaussian, s.blur);
    back_solarize(chunk_of(after, 0), chunk_of(g, 0), pixels, plan.tone.op[0].factor);
  }
  for (int c = 0; c < 3 && gaussian.half > 0; ++c)
    by[fastssl::kSigma] +=
        back_blur(before[c], g[c], size, gaussian, s.blur, s.spread_row, after[c]);
  return true;
}

inline void back_view(const AugmentCall& call, const Needs& needs, int64_t view, int64_t sample, Scratch& s) {
  const int64_t size = call.size, pixels = size * size;
  double* by = call.g_values + (view * call.samples + sample) * fastssl::kAugmentValues;
  for (int k = 0; k < fastssl::kAugmentValues; ++k) by[k] = 0;
  Plan plan = plan_of(call, view, sample, true);
  set_crop(call, needs, plan, &s.crop);
  run_crop(s.crop, *plan.image, call.image_dtype, s.planes[kCropped]);
  Planes clamped_crop = s.planes[kCropped];
  if (plan.clamps) {
    clamped_crop = s.planes[kClamped];
    copy_planes(s.planes[kCropped], clamped_crop, pixels);
    apply_line(chunk_of(clamped_crop, 0), pixels, 1.0f, 0.0f);
  }
  Planes x = clamped_crop;
  const bool moves = plan.runs(fastssl::kAffine);
  const Affine affine = affine_of(plan.values + fastssl::kAngle, call.affine_nearest != 0);
  if (moves) {
    x = s.planes[kMoved];
    run_affine(affine, size, clamped_crop, x);
  }
  find_mean(plan.colour, x, pixels, s.chunks);
  Planes g = s.planes[kGradient];
  load_gradient(frame_of(call, const_cast<void*>(call.g_out), view, sample), normal_of(call), g);
  if (!back_tone(call, plan, x, s, by)) return;
  back_colour(plan.colour, x, g, pixels, s.chunks, by);
  if (moves) {
    const Planes to = s.planes[kSpare];
    std::memset(to.data, 0, size_t(3 * to.step) * sizeof(float));
    double by_matrix[6];
    back_affine(affine, size, clamped_crop, g, to, by_matrix);
    affine_chain(plan.values + fastssl::kAngle, affine, by_matrix, by + fastssl::kAngle);
    g = to;
  }
  if (plan.clamps) back_clamp(chunk_of(s.planes[kCropped], 0), chunk_of(g, 0), pixels);
  back_crop(call, needs, *plan.image, call.g_images ? call.g_images + sample : nullptr, g, s, by);
}

}  // namespace
