// Gaussian blur of a plane, across and down, mirrored at the first and last pixel. Rows blurred
// across wait in a ring until the rows below them are there.
#pragma once
#include <cmath>

#include "augment_lanes.h"

namespace {

constexpr double kNoTap = 1e-9;  // of the central weight: what weighs less is left out

struct Gauss {
  int64_t half;       // taps on each side; 0: nothing to blur
  int64_t window;     // taps on each side before the light ones were left out
  float *weight, *slope;  // (window + 1), from the centre outwards; slope: derivative by sigma
};

// k_j = exp(-j^2 / 2 sigma^2) / sum; `slope` is filled where it is not null.
inline Gauss gauss(double sigma, int64_t window, float* weight, float* slope) {
  const double rate = sigma > 0 ? 0.5 / (sigma * sigma) : __builtin_inf();
  const auto raw = [&](int64_t j) { return j == 0 ? 1.0 : std::exp(-rate * double(j * j)); };
  double total = 1.0, moment = 0.0;
  int64_t half = 0;
  for (int64_t j = 1; j <= window; ++j) {
    const double k = raw(j);
    if (!(k > kNoTap)) break;  // also where sigma is not a number
    total += 2.0 * k;
    moment += 2.0 * k * double(j * j);
    half = j;
  }
  for (int64_t j = 0; j <= half; ++j) {
    weight[j] = float(raw(j) / total);
    if (!slope) continue;
    slope[j] = half == 0 ? 0.0f : float(raw(j) / total * (double(j * j) - moment / total) * 2.0 * rate / sigma);
  }
  return {half, window, weight, slope};
}

inline int64_t mirrored(int64_t at, int64_t size) {
  if (at < 0) at = -at;
  return at < size ? at : 2 * (size - 1) - at;
}

// `half` mirrored pixels on each side of a row.
inline void pad_row(const float* row, int64_t size, int64_t half, float* padded) {
  std::memcpy(padded + half, row, size_t(size) * sizeof(float));
  for (int64_t j = 1; j <= half; ++j) {
    padded[half - j] = row[j];
    padded[half + size - 1 + j] = row[size - 1 - j];
  }
}

// to[x] = sum_j weight[|j|] centre[x + j] over whole vectors.
inline void blur_across(const float* centre, const float* weight, int64_t half, int64_t size, float* to) {
  for (int64_t x = 0; x < size; x += kWide) {
    Pixel sum = load_loose<float>(centre + x) * weight[0];
    for (int64_t j = 1; j <= half; ++j)
      sum += (load_loose<float>(centre + x - j) + load_loose<float>(centre + x + j)) * weight[j];
    store_loose<float>(to + x, sum);
  }
}

// to = sum_j weight[|j|] rows[half + j].
inline void blur_down(const float* const* rows, const float* weight, int64_t half, int64_t size, float* to) {
  const float* const* centre = rows + half;
  for (int64_t x = 0; x < size; x += kWide) {
    Pixel sum = load_loose<float>(centre[0] + x) * weight[0];
    for (int64_t j = 1; j <= half; ++j)
      sum += (load_loose<float>(centre[-j] + x) + load_loose<float>(centre[j] + x)) * weight[j];
    store_first(to + x, sum, size - x);
  }
}

// Memory for one plane's blur.
struct BlurRows {
  float* padded;      // a row with its mirrored ends
  float* ring;        // rows blurred across
  int64_t width, mask;
  const float** rows;

  static int64_t ring_rows(int64_t window) {
    int64_t count = 1;
    while (count < 2 * window + 1) count *= 2;
    return count;
  }
  static int64_t padded_width(int64_t size, int64_t window) {
    return round_up(size + 4 * window, 16) + 64;
  }
  float* row(int64_t y) const { return ring + (y & mask) * width; }
};

// In place: a row is overwritten once every row that it counts for has been blurred across.
inline void blur_plane(float* plane, int64_t size, const Gauss& g, const BlurRows& memory) {
  int64_t done = 0;
  for (int64_t y = 0; y < size; ++y) {
    for (; done < size && done <= y + g.half; ++done) {
      pad_row(plane + done * size, size, g.half, memory.padded);
      blur_across(memory.padded + g.half, g.weight, g.half, size, memory.row(done));
    }
    for (int64_t j = -g.half; j <= g.half; ++j)
      memory.rows[g.half + j] = memory.row(mirrored(y + j, size));
    blur_down(memory.rows, g.weight, g.half, size, plane + y * size);
  }
}

}  // namespace
