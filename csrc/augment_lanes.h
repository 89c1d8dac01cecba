// Vectors of pixels: minima that keep NaN, shuffles by a variable index, three planes at once.
#pragma once
#include "simd.h"

#define FASTSSL_INLINE_LAMBDA __attribute__((always_inline))

namespace {

using Pixel = Vec<float>;
using Index = Ints<float>;
constexpr int kWide = kLanes<float>;
constexpr float kGreen = 0.587f, kBlue = 0.114f;  // weights in grey; red's is the caller's

FASTSSL_INLINE int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// The larger one, or x where it is NaN.
FASTSSL_INLINE Pixel at_least(Pixel x, Pixel low) {
#if defined(__AVX512F__)
  return (Pixel)_mm512_max_ps((__m512)low, (__m512)x);
#elif defined(__AVX2__)
  return (Pixel)_mm256_max_ps((__m256)low, (__m256)x);
#else
  return select<float>(low > x, low, x);
#endif
}

FASTSSL_INLINE Pixel at_most(Pixel x, Pixel high) {
#if defined(__AVX512F__)
  return (Pixel)_mm512_min_ps((__m512)high, (__m512)x);
#elif defined(__AVX2__)
  return (Pixel)_mm256_min_ps((__m256)high, (__m256)x);
#else
  return select<float>(high < x, high, x);
#endif
}

FASTSSL_INLINE Pixel clamped(Pixel x) {
  return at_most(at_least(x, splat<float>(0.0f)), splat<float>(1.0f));
}

FASTSSL_INLINE Pixel magnitude(Pixel x) { return (Pixel)((Index)x & 0x7fffffff); }

// 1 where the mask is set, else 0.
FASTSSL_INLINE Pixel one_where(Index mask) { return (Pixel)(mask & (Index)splat<float>(1.0f)); }
FASTSSL_INLINE Pixel keep_where(Index mask, Pixel x) { return (Pixel)(mask & (Index)x); }

FASTSSL_INLINE Pixel grey_of(Pixel r, Pixel g, Pixel b, float red) {
  return r * red + g * kGreen + b * kBlue;
}

// from[index], of one vector or of two that follow each other.
FASTSSL_INLINE Pixel look_up(const float* from, Index index, bool two) {
#if defined(__clang__) || !(defined(__AVX2__) || defined(__AVX512F__))
  (void)two;
  alignas(64) float out[kWide];
  for (int lane = 0; lane < kWide; ++lane) out[lane] = from[index[lane]];
  return load<float>(out);
#else
  if (!two) return __builtin_shuffle(load_loose<float>(from), index);
  return __builtin_shuffle(load_loose<float>(from), load_loose<float>(from + kWide), index);
#endif
}

FASTSSL_INLINE double lanes_sum(Pixel x) {
  float half[kWide];
  std::memcpy(half, &x, sizeof(half));
#pragma GCC unroll 4
  for (int width = kWide / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) half[lane] += half[lane + width];
  return double(half[0]);
}

// The first `count` lanes, zeros beyond.
FASTSSL_INLINE Pixel first_lanes(Pixel x, int64_t count) {
  if (count >= kWide) return x;
  Pixel kept = {};
  std::memcpy(&kept, &x, size_t(count) * sizeof(float));
  return kept;
}

FASTSSL_INLINE void store_first(float* to, Pixel x, int64_t count) {
  if (count >= kWide) store_loose<float>(to, x);
  else std::memcpy(to, &x, size_t(count) * sizeof(float));
}

// Red, green and blue of an S x S image, each plane's rows without gaps; the planes are padded so
// that a whole vector may be read and written at every pixel.
struct Planes {
  float* data;
  int64_t step;

  float* operator[](int channel) const { return data + channel * step; }
  static int64_t plane_step(int64_t size) { return round_up(size * size, 16) + 32; }
};

}  // namespace
