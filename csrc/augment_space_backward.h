// Derivatives of affine and blur, by the plane and by their parameters.
#pragma once
#include "augment_blur.h"
#include "augment_space.h"

namespace {

// Gradients by xx, xy, yx, yy and the shift become those by angle, translation, scale and shears,
// in the order of the table.
inline void affine_chain(const double* values, const Affine& m, const double* by, double* out) {
  const double angle = values[0] * kDegree, shear_x = values[4] * kDegree, shear_y = values[5] * kDegree;
  const double scale = values[3], turned = angle - shear_y;
  const double a = std::cos(turned) / std::cos(shear_y), c = std::sin(turned) / std::cos(shear_y);
  const double tx = std::tan(shear_x), ty = std::tan(shear_y);
  const double by_d = by[0] / scale, by_b = -by[1] / scale, by_c = -by[2] / scale, by_a = by[3] / scale;
  const double a_y = c + a * ty, c_y = c * ty - a;  // by shear_y
  out[0] = kDegree * (by_a * -c + by_c * a + by_b * (c * tx - std::cos(angle)) +
                      by_d * (-a * tx - std::sin(angle)));
  out[1] = by[4];
  out[2] = by[5];
  out[3] = -(by[0] * m.xx + by[1] * m.xy + by[2] * m.yx + by[3] * m.yy) / scale;
  out[4] = -kDegree * (1.0 + tx * tx) * (by_b * a + by_d * c);
  out[5] = kDegree * (by_a * a_y + by_c * c_y - tx * (by_b * a_y + by_d * c_y));
}

// `by` is written: gradients by xx, xy, yx, yy, shift_x, shift_y; `to`, cleared before, gets what
// flows to the source.
inline void back_affine(const Affine& m, int64_t size, Planes source, Planes gradient, Planes to, double* by) {
  for (int k = 0; k < 6; ++k) by[k] = 0;
  for (int64_t y = 0; y < size; ++y)
    for (int64_t x = 0; x < size; ++x) {
      Place at;
      if (!place_of(m, size, x, y, &at)) continue;
      float g[3], across = 0, along = 0;
      for (int c = 0; c < 3; ++c) g[c] = gradient[c][y * size + x];
      for (int corner = 0; corner < (m.nearest ? 1 : 4); ++corner) {
        const int right = corner % 2, below = corner / 2;
        const int64_t cx = at.x + right, cy = at.y + below;
        if (!inside(cx, cy, size)) continue;
        const float wx = right ? at.right : 1 - at.right, wy = below ? at.below : 1 - at.below;
        const float w = m.nearest ? 1.0f : wx * wy;
        float value = 0;
        for (int c = 0; c < 3; ++c) {
          to[c][cy * size + cx] += w * g[c];
          value += g[c] * source[c][cy * size + cx];
        }
        across += (right ? wy : -wy) * value;
        along += (below ? wx : -wx) * value;
      }
      if (m.nearest) continue;
      const double gx = double(across), gy = double(along);
      by[0] += gx * double(at.ux);
      by[1] += gx * double(at.uy);
      by[2] += gy * double(at.ux);
      by[3] += gy * double(at.uy);
      by[4] -= gx * m.xx + gy * m.yx;
      by[5] -= gx * m.xy + gy * m.yy;
    }
}

inline double dot(const float* a, const float* b, int64_t count) {
  Pixel sum = {};
  for (int64_t x = 0; x < count; x += kWide) {
    if (count - x >= kWide) sum += load_loose<float>(a + x) * load_loose<float>(b + x);
    else sum += first_lanes(load_loose<float>(a + x), count - x) * first_lanes(load_loose<float>(b + x), count - x);
  }
  return lanes_sum(sum);
}

// <gradient, Ky' Kx plane>: the derivative by sigma of the blur down.
inline double sigma_down(const float* plane, const float* gradient, int64_t size, const Gauss& g,
                         const BlurRows& memory, float* row) {
  double total = 0;
  int64_t done = 0;
  for (int64_t y = 0; y < size; ++y) {
    for (; done < size && done <= y + g.half; ++done) {
      pad_row(plane + done * size, size, g.half, memory.padded);
      blur_across(memory.padded + g.half, g.weight, g.half, size, memory.row(done));
    }
    for (int64_t j = -g.half; j <= g.half; ++j)
      memory.rows[g.half + j] = memory.row(mirrored(y + j, size));
    blur_down(memory.rows, g.slope, g.half, size, row);
    total += dot(row, gradient + y * size, size);
  }
  return total;
}

// to = Ky^T gradient; `to` has room for a plane.
inline void back_down(const float* gradient, int64_t size, const Gauss& g, const BlurRows& memory, float* to) {
  float *nothing = memory.ring, *row = memory.ring + memory.width;  // half > 0: four rows or more
  std::memset(nothing, 0, size_t(memory.width) * sizeof(float));
  std::memset(to, 0, size_t(size * size) * sizeof(float));
  for (int64_t p = -g.half; p < size + g.half; ++p) {
    for (int64_t j = -g.half; j <= g.half; ++j)
      memory.rows[g.half + j] = p + j < 0 || p + j >= size ? nothing : gradient + (p + j) * size;
    blur_down(memory.rows, g.weight, g.half, size, row);
    float* sum = to + mirrored(p, size) * size;
    for (int64_t x = 0; x < size; ++x) sum[x] += row[x];
  }
}

// row = Kx^T row, in place; `wide` has room for a row and its ends.
inline void back_across(float* row, int64_t size, const Gauss& g, const BlurRows& memory, float* wide) {
  const int64_t half = g.half, spread = size + 2 * half;
  std::memset(memory.padded, 0, size_t(size + 4 * half + 32) * sizeof(float));
  std::memcpy(memory.padded + 2 * half, row, size_t(size) * sizeof(float));
  blur_across(memory.padded + half, g.weight, half, spread, wide);
  std::memcpy(row, wide + half, size_t(size) * sizeof(float));
  for (int64_t j = 1; j <= half; ++j) {
    row[j] += wide[half - j];
    row[size - 1 - j] += wide[half + size - 1 + j];
  }
}

// The gradient becomes that of the blurred plane; returns the derivative by sigma. `spare` has room
// for a plane.
inline double back_blur(const float* plane, float* gradient, int64_t size, const Gauss& g,
                        const BlurRows& memory, float* wide, float* spare) {
  double by_sigma = sigma_down(plane, gradient, size, g, memory, spare);
  back_down(gradient, size, g, memory, spare);
  float* row = memory.ring;
  for (int64_t y = 0; y < size; ++y) {
    pad_row(plane + y * size, size, g.half, memory.padded);
    blur_across(memory.padded + g.half, g.slope, g.half, size, row);
    by_sigma += dot(row, spare + y * size, size);
    std::memcpy(gradient + y * size, spare + y * size, size_t(size) * sizeof(float));
    back_across(gradient + y * size, size, g, memory, wide);
  }
  return by_sigma;
}

}  // namespace
