// The crop: source rows to float, resized across as they come, then down. Rows resized across wait
// in a ring, in the first cache; a backward keeps all of them.
#pragma once
#include "augment.h"
#include "augment_axis.h"

namespace {

FASTSSL_INLINE float unit_scale(float x) { return x; }

// x / 255, correctly rounded: the quotient by the reciprocal, corrected by a fused remainder.
FASTSSL_INLINE float unit_scale(uint8_t x) {
#if defined(__FMA__) || defined(__aarch64__)
  constexpr float reciprocal = 1.0f / 255.0f;
  const float whole = float(x), quotient = whole * reciprocal;
  return quotient + (whole - 255.0f * quotient) * reciprocal;
#else
  return float(x) / 255.0f;
#endif
}

// A row of one channel to floats in [0, 1]; strides in elements.
template <class T>
FASTSSL_INLINE void read_plane_row(const T* from, int64_t step, int64_t count, float* to) {
  if (step == 1) {
    for (int64_t x = 0; x < count; ++x) to[x] = unit_scale(from[x]);
  } else {
    for (int64_t x = 0; x < count; ++x) to[x] = unit_scale(from[x * step]);
  }
}

template <class T>
void read_interleaved_row(const T* __restrict from, int64_t count, float* __restrict r,
                          float* __restrict g, float* __restrict b) {
  for (int64_t x = 0; x < count; ++x) {
    r[x] = unit_scale(from[3 * x]);
    g[x] = unit_scale(from[3 * x + 1]);
    b[x] = unit_scale(from[3 * x + 2]);
  }
}

template <class T>
void read_pixels(const fastssl::AugmentImage& image, int64_t row, int64_t first, int64_t count,
                 float* to, int64_t to_step) {
  const T* from = static_cast<const T*>(image.data) + row * image.row_step + first * image.column_step;
  if (image.column_step == 3 && image.channel_step == 1)
    return read_interleaved_row(from, count, to, to + to_step, to + 2 * to_step);
  for (int channel = 0; channel < 3; ++channel)
    read_plane_row(from + channel * image.channel_step, image.column_step, count, to + channel * to_step);
}

inline void read_pixels(const fastssl::AugmentImage& image, int dtype, int64_t row, int64_t first,
                        int64_t count, float* to, int64_t to_step) {
  if (dtype == fastssl::kUint8) read_pixels<uint8_t>(image, row, first, count, to, to_step);
  else read_pixels<float>(image, row, first, count, to, to_step);
}

// One row of each channel resized across. Beyond the pixels of `from` lie zeros, as many as there
// are taps and two vectors of them: weights of zero read there.
template <int kReach>
void across(const Axis& axis, const float* from, int64_t from_step, float* to, int64_t to_step) {
  for (int64_t block = 0; block < axis.padded; block += kWide) {
    const Index index = *(const Ints<float>*)(axis.relative + block);
    const float* source = from + axis.base[block / kWide];
    Pixel sum[3] = {};
    for (int64_t k = 0; k < axis.taps; ++k) {
      const Pixel w = load<float>(axis.weight + k * axis.padded + block);
#pragma GCC unroll 3
      for (int channel = 0; channel < 3; ++channel) {
        const float* at = source + channel * from_step + k;
        if (kReach) {
          sum[channel] += w * look_up(at, index, kReach == 2);
        } else {
          Pixel found;
          for (int lane = 0; lane < kWide; ++lane) found[lane] = at[axis.relative[block + lane]];
          sum[channel] += w * found;
        }
      }
    }
    for (int channel = 0; channel < 3; ++channel) store<float>(to + channel * to_step + block, sum[channel]);
  }
}

inline void across(const Axis& axis, const float* from, int64_t from_step, float* to, int64_t to_step) {
  if (axis.reach == 1) across<1>(axis, from, from_step, to, to_step);
  else if (axis.reach == 2) across<2>(axis, from, from_step, to, to_step);
  else across<0>(axis, from, from_step, to, to_step);
}

// Rows of three channels, `width` floats each; row p lies at p & mask.
struct Ring {
  float* memory;
  int64_t width, mask;

  float* row(int64_t p) const { return memory + (p & mask) * 3 * width; }
  static int64_t rows(int64_t taps) {
    int64_t count = 1;
    while (count < taps) count *= 2;
    return count;
  }
};

// Output row of each channel from `taps` rows of the ring, kTaps of them if not 0.
template <int kTaps>
void down(const Ring& ring, int64_t low, const float* weight, int64_t weight_step, int64_t taps,
          int64_t width, float* to, int64_t to_step) {
  const int64_t count = kTaps ? kTaps : taps;
  for (int channel = 0; channel < 3; ++channel) {
    const int64_t shift = channel * ring.width;
    float* out = to + channel * to_step;
    for (int64_t x = 0; x < width; x += kWide) {
      Pixel sum = {};
#pragma GCC unroll 4
      for (int64_t k = 0; k < count; ++k)
        sum += load<float>(ring.row(low + k) + shift + x) * weight[k * weight_step];
      store_first(out + x, sum, width - x);
    }
  }
}

inline void down(const Axis& axis, int64_t output, const Ring& ring, int64_t width, float* to,
                 int64_t to_step) {
  const float* w = axis.weight + output;
  const int64_t low = axis.low[output], step = axis.padded;
  // the taps that an output lacks weigh nothing, and may lie beyond the rows read so far
  int64_t taps = axis.taps < axis.length - low ? axis.taps : axis.length - low;
  while (taps > 1 && w[(taps - 1) * step] == 0.0f) --taps;
  if (taps == 1) down<1>(ring, low, w, step, 1, width, to, to_step);
  else if (taps == 2) down<2>(ring, low, w, step, 2, width, to, to_step);
  else if (taps == 3) down<3>(ring, low, w, step, 3, width, to, to_step);
  else if (taps == 4) down<4>(ring, low, w, step, 4, width, to, to_step);
  else down<0>(ring, low, w, step, taps, width, to, to_step);
}

struct Crop {
  Axis x, y;      // y is never reversed: its outputs are written from the last one on instead
  bool upside_down;
  float* source;  // one row of each channel and zeros behind each
  int64_t source_step;
  Ring ring;

  int64_t out_row(int64_t i) const { return upside_down ? y.outputs - 1 - i : i; }
};

inline void crop_rows(const Crop& crop, const fastssl::AugmentImage& image, int dtype, int64_t begin,
                      int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    read_pixels(image, dtype, crop.y.first + p, crop.x.first, crop.x.length, crop.source,
                crop.source_step);
    across(crop.x, crop.source, crop.source_step, crop.ring.row(p), crop.ring.width);
  }
}

inline void clear_behind(const Axis& axis, float* rows, int64_t step) {
  for (int channel = 0; channel < 3; ++channel)
    std::memset(rows + channel * step + axis.length, 0, size_t(axis.taps + 2 * kWide) * sizeof(float));
}

inline void run_crop(const Crop& crop, const fastssl::AugmentImage& image, int dtype, Planes to) {
  const int64_t size = crop.y.outputs;
  clear_behind(crop.x, crop.source, crop.source_step);
  int64_t done = 0;
  for (int64_t i = 0; i < size; ++i) {
    int64_t need = crop.y.low[i] + crop.y.taps;
    if (need > crop.y.length) need = crop.y.length;
    crop_rows(crop, image, dtype, done, need);
    if (need > done) done = need;
    down(crop.y, i, crop.ring, size, to.data + crop.out_row(i) * size, to.step);
  }
  const int64_t pixels = size * size, behind = round_up(pixels, 16) - pixels;
  for (int channel = 0; channel < 3; ++channel)
    std::memset(to[channel] + pixels, 0, size_t(behind) * sizeof(float));
}

}  // namespace
