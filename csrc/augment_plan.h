// What one row of the table asks for, and the memory that a thread needs to do it.
#pragma once
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "augment_blur.h"
#include "augment_colour.h"
#include "augment_resize.h"
#include "augment_space.h"

namespace {

using fastssl::AugmentCall;
using fastssl::AugmentImage;

// Foster et al. 2021 (InvCLR): RGB to YIQ and back, inverse to each other to three digits.
constexpr double kToYiq[3][3] = {{0.299, 0.587, 0.114}, {0.596, -0.274, -0.321}, {0.211, -0.523, 0.311}};
constexpr double kToRgb[3][3] = {{1.0, 0.956, 0.621}, {1.0, -0.272, -0.647}, {1.0, -1.107, 1.705}};

constexpr double kTurn = 2.0 * 3.14159265358979323846;

inline void fill_yiq(ColourOp& op, double turns) {
  const double angle = kTurn * turns, cosine = std::cos(angle), sine = std::sin(angle);
  const double turn[3][3] = {{1, 0, 0}, {0, cosine, -sine}, {0, sine, cosine}};
  const double slope[3][3] = {{0, 0, 0}, {0, -sine, -cosine}, {0, cosine, -sine}};
  for (int i = 0; i < 9; ++i) {
    double value = 0, derivative = 0;
    for (int j = 0; j < 9; ++j) {
      const double outer = kToRgb[i / 3][j / 3] * kToYiq[j % 3][i % 3];
      value += outer * turn[j / 3][j % 3];
      derivative += outer * slope[j / 3][j % 3];
    }
    op.matrix[i] = float(value);
    op.matrix_slope[i] = float(derivative * kTurn);
  }
}

constexpr int kMostOps = 8;

struct Ops {
  ColourOp op[kMostOps];
  int value[kMostOps];  // column of the value that it is differentiated by, or -1
  int count, contrast;  // position of contrast, or -1

  void add(OpKind kind, double factor, float red, int column, bool idle = false) {
    if (kind == kContrastOp) contrast = count;
    value[count] = column;
    op[count++] = ColourOp{kind, idle, float(factor), red, 0.0f, {}, {}};
  }
};

struct Plan {
  const AugmentImage* image;
  const double* values;
  int stages;
  bool clamps;  // the crop, to [0, 1]
  Ops colour;  // jitter, grey
  Ops tone;    // solarize, posterize: after the blur
  Rectangle erased;

  bool runs(int stage) const { return (stages & stage) != 0; }
};

// The number `index` of the permutations of 0..3 in lexicographic order.
inline void jitter_order(int index, int* order) {
  index = index < 0 ? 0 : index > 23 ? 23 : index;
  int left[4] = {0, 1, 2, 3};
  const int block[4] = {6, 2, 1, 1};
  for (int k = 0; k < 4; ++k) {
    const int pick = index / block[k];
    index %= block[k];
    order[k] = left[pick];
    for (int i = pick; i < 3; ++i) left[i] = left[i + 1];
  }
}

// `every`: steps that change nothing too, since their factors have derivatives.
inline void add_jitter(const AugmentCall& call, const double* values, int order_index, bool every, Ops* ops) {
  static constexpr OpKind kinds[3] = {kBrightnessOp, kContrastOp, kSaturationOp};
  const float red = call.yiq ? 0.299f : 0.2989f;
  int order[4];
  jitter_order(order_index, order);
  for (const int step : order) {
    const int column = fastssl::kBrightness + step;
    const double factor = values[column];
    const bool idle = factor == (step == 3 ? 0.0 : 1.0);
    if (idle && !every) continue;
    ops->add(step < 3 ? kinds[step] : call.yiq ? kYiqOp : kHsvOp, factor, red, column, idle);
    if (step == 3 && call.yiq) fill_yiq(ops->op[ops->count - 1], factor);
  }
}

inline Plan plan_of(const AugmentCall& call, int64_t view, int64_t sample, bool every) {
  const int64_t row = view * call.samples + sample;
  const double* values = call.values + row * fastssl::kAugmentValues;
  const int32_t* codes = call.codes + row * fastssl::kAugmentCodes;
  Plan plan = {};
  plan.image = call.images + sample;
  plan.values = values;
  plan.stages = codes[fastssl::kStages];
  plan.colour.contrast = plan.tone.contrast = -1;
  const float red = call.yiq ? 0.299f : 0.2989f;
  plan.clamps = call.bicubic && call.image_dtype == fastssl::kUint8;
  if (plan.runs(fastssl::kJitter))
    add_jitter(call, values, codes[fastssl::kJitterOrder], every, &plan.colour);
  if (plan.runs(fastssl::kGrayscale)) plan.colour.add(kGrayOp, 1.0, red, -1);
  if (plan.runs(fastssl::kSolarizeStage))
    plan.tone.add(kSolarizeOp, values[fastssl::kSolarize], red, -1);
  if (plan.runs(fastssl::kPosterize)) {
    const int bits = codes[fastssl::kPosterizeBits];
    plan.tone.add(kPosterizeOp, double(1 << (bits < 0 ? 0 : bits > 16 ? 16 : bits)), red, -1);
  }
  const double* box = values + fastssl::kEraseLeft;
  plan.erased = rectangle_of(box[0], box[1], box[2], box[3], call.size);
  return plan;
}

inline int64_t blur_half(const AugmentCall& call) {
  const int64_t half = call.blur_window / 2;
  return half < call.size ? half : call.size - 1;
}

// What the largest task of a call needs.
struct Needs {
  int64_t taps_x, taps_y, source, rows;
  int64_t spread;  // weights of the crop across, by source pixel

  Needs(const AugmentCall& call, bool whole)
      : taps_x(1), taps_y(1), source(1), rows(1), spread(1) {
    for (int64_t i = 0; i < call.views * call.samples; ++i) {
      const AugmentImage& image = call.images[i % call.samples];
      const double* values = call.values + i * fastssl::kAugmentValues;
      const Filter filter{call.bicubic != 0};
      const Span x = clip_span(values[fastssl::kLeft], values[fastssl::kWidth], image.width);
      const Span y = clip_span(values[fastssl::kTop], values[fastssl::kHeight], image.height);
      raise(&taps_x, most_taps(x, call.size, image.width, filter));
      raise(&taps_y, most_taps(y, call.size, image.height, filter));
      raise(&source, image.width);
      if (!whole) continue;
      raise(&rows, Ring::rows(image.height));
      if (call.g_images) raise(&spread, spread_weights(x, call.size, image.width, filter));
    }
    raise(&rows, Ring::rows(taps_y));
  }
  static void raise(int64_t* to, int64_t value) {
    if (value > *to) *to = value;
  }
};

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kGap = 64;  // between two arrays, poisoned so that the sanitizer sees a step too far
#else
constexpr int64_t kGap = 0;
#endif

// Cuts a thread's memory into arrays at cache lines; run twice, the first time only to measure.
struct Cutter {
  char* memory;
  int64_t used = 0;

  template <class T> void cut(T** array, int64_t count) {
    if (memory) *array = reinterpret_cast<T*>(memory + used);
    used += round_up(count * int64_t(sizeof(T)), 64);
#if defined(__SANITIZE_ADDRESS__)
    if (memory) __asan_poison_memory_region(memory + used, size_t(kGap));
#endif
    used += kGap;
  }
};

// Crop, clamped crop, what jitter takes, gradient, what the blur takes, what it gives.
enum PlaneSet : int { kCropped, kClamped, kMoved, kGradient, kBlurred, kSpare, kPlaneSets };
constexpr int kForwardSets = 2;

struct Scratch {
  Crop crop;
  Planes planes[kPlaneSets];
  BlurRows blur;
  float *blur_weight, *blur_slope;
  // Of a backward: inputs of every step on one chunk, gradients by the weights of an axis, a row
  // with both its mirrored ends, rows with zeros behind them, the crop across by source pixel.
  float *chunks, *partial, *spread_row, *led_rows;
  int64_t led_step;
  double* products;
  Axis back_x;

  int64_t cut(const AugmentCall& call, const Needs& needs, int plane_sets, bool whole, char* memory) {
    Cutter cutter{memory};
    const int64_t size = call.size, half = blur_half(call), wide = round_up(size, 16);
    for (auto [axis, taps] : {std::pair<Axis*, int64_t>{&crop.x, needs.taps_x}, {&crop.y, needs.taps_y}}) {
      char* arrays = nullptr;
      cutter.cut(&arrays, axis_bytes(size, taps));
      if (memory) place_axis(*axis, arrays, size);
    }
    crop.source_step = round_up(needs.source + needs.taps_x, 16) + 48;
    cutter.cut(&crop.source, 3 * crop.source_step);
    crop.ring.width = wide;
    crop.ring.mask = needs.rows - 1;
    cutter.cut(&crop.ring.memory, needs.rows * 3 * wide);
    for (int k = 0; k < plane_sets; ++k) {
      planes[k].step = Planes::plane_step(size);
      cutter.cut(&planes[k].data, 3 * planes[k].step);
    }
    blur.width = wide;
    blur.mask = BlurRows::ring_rows(half) - 1;
    cutter.cut(&blur.padded, BlurRows::padded_width(size, half));
    cutter.cut(&blur.ring, (blur.mask + 1) * wide);
    cutter.cut(&blur.rows, 2 * half + 1);
    cutter.cut(&blur_weight, half + 1);
    cutter.cut(&blur_slope, half + 1);
    if (whole) {
      const int64_t taps = needs.taps_x > needs.taps_y ? needs.taps_x : needs.taps_y;
      cutter.cut(&chunks, (kMostOps + 1) * 3 * kBackChunk);
      cutter.cut(&products, taps * wide);
      cutter.cut(&partial, taps * wide);
      cutter.cut(&spread_row, BlurRows::padded_width(size, half));
      led_step = 2 * wide + 48;  // a source pixel counts for at most every output
      cutter.cut(&led_rows, 3 * led_step);
      char* arrays = nullptr;
      cutter.cut(&arrays, axis_bytes(needs.source, 0) + needs.spread * 4);
      if (memory) place_axis(back_x, arrays, needs.source);
    }
    return cutter.used;
  }
};

inline void set_crop(const AugmentCall& call, const Needs& needs, const Plan& plan, Crop* crop) {
  const Filter filter{call.bicubic != 0};
  const double* box = plan.values;
  const Span x = clip_span(box[fastssl::kLeft], box[fastssl::kWidth], plan.image->width);
  const Span y = clip_span(box[fastssl::kTop], box[fastssl::kHeight], plan.image->height);
  build_axis(crop->x, x, plan.image->width, filter, plan.runs(fastssl::kHflip), needs.taps_x);
  build_axis(crop->y, y, plan.image->height, filter, false, needs.taps_y);
  crop->upside_down = plan.runs(fastssl::kVflip);
}

}  // namespace
