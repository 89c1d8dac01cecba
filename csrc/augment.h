// What the C entry points hand to the augmentation kernels of one instruction set.
#pragma once
#include <cstdint>

#include "ntxent.h"

namespace fastssl {

constexpr int kUint8 = 4;  // beside the Dtypes of ntxent.h

// Columns of the table: VALUES and CODES of kernels/augment/table.py, in the same order.
enum AugmentValue : int {
  kLeft, kTop, kWidth, kHeight,
  kAngle, kTranslateX, kTranslateY, kScale, kShearX, kShearY,
  kBrightness, kContrast, kSaturation, kHue,
  kSigma, kSolarize,
  kEraseLeft, kEraseTop, kEraseWidth, kEraseHeight, kEraseRed, kEraseGreen, kEraseBlue,
  kAugmentValues,
};
enum AugmentCode : int { kStages, kJitterOrder, kPosterizeBits, kAugmentCodes };
enum AugmentStage : int {
  kHflip = 1, kVflip = 2, kAffine = 4, kJitter = 8, kGrayscale = 16, kBlur = 32,
  kSolarizeStage = 64, kPosterize = 128, kEqualize = 256, kErase = 512,
};

// One image: three planes in any strides, counted in elements.
struct AugmentImage {
  const void* data;
  int64_t channel_step, row_step, column_step, height, width;
};

struct AugmentCall {
  const AugmentImage* images;  // (N)
  const double* values;        // (V, N, kAugmentValues)
  const int32_t* codes;        // (V, N, kAugmentCodes)
  int64_t views, samples, size;
  int image_dtype;    // kUint8 (0..255) or kFloat32 (0..1)
  int bicubic;        // else bilinear; both with antialias
  int yiq;            // hue as a rotation in YIQ, else through HSV
  int blur_window;    // odd
  int affine_nearest;  // else bilinear
  int out_dtype;      // kFloat32 or kBfloat16: of the views, and of their gradient
  int channels_last;
  int threads;
  float mean[3], std[3];
  void* out;                     // (V, N, 3, S, S) or, channels last, (V, N, S, S, 3)
  const void* g_out;             // the same, in a backward
  double* g_values;              // (V, N, kAugmentValues), every one written
  const AugmentImage* g_images;  // (N) float32, zero before the call; null: not wanted
};

struct AugmentKernels {
  int (*forward)(const AugmentCall&);  // 0, or 1 when memory ran out
  int (*backward)(const AugmentCall&);
};

const AugmentKernels* augment_baseline();
const AugmentKernels* augment_avx2();
const AugmentKernels* augment_avx512();

}  // namespace fastssl
