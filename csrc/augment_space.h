// Stages between neighbours of an S x S view: affine, equalize, erase.
#pragma once
#include <cmath>

#include "augment_lanes.h"

namespace {

// From a view's pixel (from its centre) to the source's: source = matrix (pixel - shift).
struct Affine {
  double xx, xy, yx, yy, shift_x, shift_y;
  bool nearest;
};

constexpr double kDegree = 3.14159265358979323846 / 180.0;

// values: angle, translate_x, translate_y, scale, shear_x, shear_y.
inline Affine affine_of(const double* values, bool nearest) {
  const double angle = values[0] * kDegree, shear_x = values[4] * kDegree, shear_y = values[5] * kDegree;
  const double turned = angle - shear_y, scale = values[3];
  const double a = std::cos(turned) / std::cos(shear_y), c = std::sin(turned) / std::cos(shear_y);
  const double b = -a * std::tan(shear_x) - std::sin(angle);
  const double d = -c * std::tan(shear_x) + std::cos(angle);
  return {d / scale, -b / scale, -c / scale, a / scale, values[1], values[2], nearest};
}

// Where pixel (x, y) of the view comes from; false where no pixel of the source counts for it.
struct Place {
  int64_t x, y;           // nearest pixel, or the one at the upper left
  float right, below;     // its distance from there
  float ux, uy;           // the view's pixel from the centre, shifted
};

inline bool place_of(const Affine& m, int64_t size, int64_t x, int64_t y, Place* at) {
  const double middle = double(size - 1) * 0.5;
  const double ux = double(x) - middle - m.shift_x, uy = double(y) - middle - m.shift_y;
  const double sx = m.xx * ux + m.xy * uy + middle, sy = m.yx * ux + m.yy * uy + middle;
  if (!(sx > -1.0 && sx < double(size) && sy > -1.0 && sy < double(size))) return false;
  const double fx = m.nearest ? std::nearbyint(sx) : std::floor(sx);
  const double fy = m.nearest ? std::nearbyint(sy) : std::floor(sy);
  *at = {int64_t(fx), int64_t(fy), float(sx - fx), float(sy - fy), float(ux), float(uy)};
  return true;
}

inline bool inside(int64_t x, int64_t y, int64_t size) {
  return x >= 0 && x < size && y >= 0 && y < size;
}

inline void run_affine(const Affine& m, int64_t size, Planes from, Planes to) {
  for (int64_t y = 0; y < size; ++y)
    for (int64_t x = 0; x < size; ++x) {
      float sum[3] = {};
      Place at;
      if (place_of(m, size, x, y, &at)) {
        const float weight[4] = {(1 - at.below) * (1 - at.right), (1 - at.below) * at.right,
                                 at.below * (1 - at.right), at.below * at.right};
        for (int corner = 0; corner < (m.nearest ? 1 : 4); ++corner) {
          const int64_t cx = at.x + corner % 2, cy = at.y + corner / 2;
          if (!inside(cx, cy, size)) continue;
          const float w = m.nearest ? 1.0f : weight[corner];
          for (int c = 0; c < 3; ++c) sum[c] += w * from[c][cy * size + cx];
        }
      }
      for (int c = 0; c < 3; ++c) to[c][y * size + x] = sum[c];
    }
  const int64_t pixels = size * size, behind = round_up(pixels, 16) - pixels;
  for (int c = 0; c < 3; ++c) std::memset(to[c] + pixels, 0, size_t(behind) * sizeof(float));
}

// A channel's histogram over 256 levels made even, by PIL's rule.
inline void equalize(float* plane, int64_t pixels) {
  int64_t histogram[256] = {};
  const auto level = [](float x) { return int(!(x > 0.0f) ? 0.0f : (x < 1.0f ? x : 1.0f) * 255.999f); };
  for (int64_t i = 0; i < pixels; ++i) ++histogram[level(plane[i])];
  int brightest = 255;
  while (brightest > 0 && histogram[brightest] == 0) --brightest;
  const int64_t step = (pixels - histogram[brightest]) / 255;
  if (step == 0) {
    for (int64_t i = 0; i < pixels; ++i) plane[i] = float(level(plane[i])) / 255.0f;
    return;
  }
  float table[256];
  int64_t below = 0;
  for (int k = 0; k < 256; ++k) {
    const int64_t even = (below + step / 2) / step;
    table[k] = float(even < 255 ? even : 255) / 255.0f;
    below += histogram[k];
  }
  for (int64_t i = 0; i < pixels; ++i) plane[i] = table[level(plane[i])];
}

// Whole pixels of the erased rectangle, clipped to the view.
struct Rectangle {
  int64_t left, right, top, bottom;
};

inline Rectangle rectangle_of(double left, double top, double width, double height, int64_t size) {
  const auto whole = [size](double edge) {
    edge = std::floor(edge + 0.5);
    return !(edge > 0) ? int64_t(0) : edge < double(size) ? int64_t(edge) : size;
  };
  return {whole(left), whole(left + width), whole(top), whole(top + height)};
}

// The colour in the rectangle; where `sums` is not null, the sums of what it replaces are added there.
inline void fill_rectangle(Planes planes, int64_t size, const Rectangle& r, const float* colour, double* sums) {
  for (int c = 0; c < 3; ++c)
    for (int64_t y = r.top; y < r.bottom; ++y) {
      float* row = planes[c] + y * size;
      double total = 0;
      for (int64_t x = r.left; x < r.right; ++x) {
        if (sums) total += double(row[x]);
        row[x] = colour[c];
      }
      if (sums) sums[c] += total;
    }
}

}  // namespace
