// Derivatives of the crop: by the box, through the weights of both axes, and by the image.
#pragma once
#include "augment_plan.h"

namespace {

// products[k][i] = <gradient of output row i, source row low_i + k resized across>.
inline void products_down(const Crop& crop, Planes gradient, double* products) {
  const int64_t size = crop.y.outputs, step = crop.y.padded;
  for (int64_t i = 0; i < size; ++i) {
    const float* row = gradient.data + crop.out_row(i) * size;
    for (int64_t k = 0; k < crop.y.taps; ++k) {
      products[k * step + i] = 0;
      if (crop.y.low[i] + k >= crop.y.length) continue;
      const float* source = crop.ring.row(crop.y.low[i] + k);
      double total = 0;
      for (int c = 0; c < 3; ++c) {
        const float *a = row + c * gradient.step, *b = source + c * crop.ring.width;
        Pixel sum = {};
        int64_t x = 0;
        for (; x + kWide <= size; x += kWide) sum += load_loose<float>(a + x) * load<float>(b + x);
        if (x < size)
          sum += first_lanes(load_loose<float>(a + x), size - x) * first_lanes(load<float>(b + x), size - x);
        total += lanes_sum(sum);
      }
      products[k * step + i] = total;
    }
  }
}

// The ring's rows become the gradients of what lay in them.
inline void back_rows(const Crop& crop, Planes gradient) {
  const int64_t size = crop.y.outputs;
  for (int64_t p = 0; p < crop.y.length; ++p)
    std::memset(crop.ring.row(p), 0, size_t(3 * crop.ring.width) * sizeof(float));
  for (int64_t i = 0; i < size; ++i)
    for (int64_t k = 0; k < crop.y.taps && crop.y.low[i] + k < crop.y.length; ++k) {
      const float w = crop.y.weight[k * crop.y.padded + i];
      if (w == 0.0f) continue;
      for (int c = 0; c < 3; ++c) {
        const float* from = gradient.data + c * gradient.step + crop.out_row(i) * size;
        float* to = crop.ring.row(crop.y.low[i] + k) + c * crop.ring.width;
        int64_t x = 0;
        for (; x + kWide <= size; x += kWide)
          store<float>(to + x, load<float>(to + x) + load_loose<float>(from + x) * w);
        if (x < size)
          store<float>(to + x, load<float>(to + x) + first_lanes(load_loose<float>(from + x), size - x) * w);
      }
    }
}

// partial[k][x] += gradient of a row x source pixel low_x + k.
template <int kReach>
void add_products_across(const Crop& crop, const float* gradient, float* partial) {
  const Axis& axis = crop.x;
  for (int64_t block = 0; block < axis.padded; block += kWide) {
    const Index index = *(const Ints<float>*)(axis.relative + block);
    const float* source = crop.source + axis.base[block / kWide];
    Pixel g[3];
    for (int c = 0; c < 3; ++c) g[c] = load<float>(gradient + c * crop.ring.width + block);
    for (int64_t k = 0; k < axis.taps; ++k) {
      float* to = partial + k * axis.padded + block;
      Pixel sum = load<float>(to);
      for (int c = 0; c < 3; ++c) {
        const float* at = source + c * crop.source_step + k;
        if (kReach) {
          sum += g[c] * look_up(at, index, kReach == 2);
        } else {
          Pixel found;
          for (int lane = 0; lane < kWide; ++lane) found[lane] = at[axis.relative[block + lane]];
          sum += g[c] * found;
        }
      }
      store<float>(to, sum);
    }
  }
}

// A row's gradient through the resize across, added to the image's.
inline void add_image_row(const Scratch& s, int64_t p, const AugmentImage& target) {
  const Crop& crop = s.crop;
  for (int c = 0; c < 3; ++c)
    std::memcpy(s.led_rows + c * s.led_step, crop.ring.row(p) + c * crop.ring.width,
                size_t(crop.x.outputs) * sizeof(float));
  across(s.back_x, s.led_rows, s.led_step, crop.source, crop.source_step);
  float* to = static_cast<float*>(const_cast<void*>(target.data)) +
              (crop.y.first + p) * target.row_step + crop.x.first * target.column_step;
  for (int c = 0; c < 3; ++c)
    for (int64_t x = 0; x < crop.x.length; ++x)
      to[c * target.channel_step + x * target.column_step] += crop.source[c * crop.source_step + x];
}

constexpr int64_t kFlushRows = 32;  // rows summed in float before they go into double

inline void products_across(const AugmentImage& image, int dtype, Scratch& s, const AugmentImage* target) {
  const Crop& crop = s.crop;
  const int64_t count = crop.x.taps * crop.x.padded;
  for (int64_t i = 0; i < count; ++i) s.products[i] = 0, s.partial[i] = 0;
  for (int64_t p = 0; p < crop.y.length; ++p) {
    clear_behind(crop.x, crop.source, crop.source_step);
    read_pixels(image, dtype, crop.y.first + p, crop.x.first, crop.x.length, crop.source, crop.source_step);
    const float* row = crop.ring.row(p);
    if (crop.x.reach == 1) add_products_across<1>(crop, row, s.partial);
    else if (crop.x.reach == 2) add_products_across<2>(crop, row, s.partial);
    else add_products_across<0>(crop, row, s.partial);
    if (target) add_image_row(s, p, *target);
    if (p % kFlushRows != kFlushRows - 1 && p != crop.y.length - 1) continue;
    for (int64_t i = 0; i < count; ++i) s.products[i] += double(s.partial[i]), s.partial[i] = 0;
  }
}

// The ring holds every row of the crop resized across; it is overwritten.
inline void back_crop(const AugmentCall& call, const Needs& needs, const AugmentImage& image,
                      const AugmentImage* target, Planes gradient, Scratch& s, double* by) {
  products_down(s.crop, gradient, s.products);
  box_gradient(s.crop.y, s.products, by + fastssl::kTop, by + fastssl::kHeight);
  back_rows(s.crop, gradient);
  if (target) {
    transpose_axis(s.crop.x, needs.spread, &s.back_x);
    clear_behind(s.back_x, s.led_rows, s.led_step);
  }
  products_across(image, call.image_dtype, s, target);
  box_gradient(s.crop.x, s.products, by + fastssl::kLeft, by + fastssl::kWidth);
}

}  // namespace
