// What happens to a pixel by itself: jitter, grey, solarize, posterize; a chunk of pixels at a time.
#pragma once
#include <cmath>

#include "augment_lanes.h"

namespace {

enum OpKind : int {
  kBrightnessOp, kContrastOp, kSaturationOp, kHsvOp, kYiqOp, kGrayOp, kSolarizeOp,
  kPosterizeOp,
};

struct ColourOp {
  OpKind kind;
  bool idle;                         // the factor changes nothing; its derivatives are there
  float factor;
  float red;                         // weight of red in grey
  float mean;                        // contrast: mean grey of the image that it is applied to
  float matrix[9], matrix_slope[9];  // hue in YIQ, and its derivative by the hue in turns
};

struct Chunk {
  float *r, *g, *b;
};

FASTSSL_INLINE Chunk chunk_of(Planes planes, int64_t at) {
  return {planes[0] + at, planes[1] + at, planes[2] + at};
}

constexpr int64_t kChunk = 512;      // pixels: three planes of them lie in the first cache
constexpr int64_t kBackChunk = 128;  // and so do those of every step here

// body(r, g, b) on every vector of a chunk; the planes are padded.
template <class Body> FASTSSL_INLINE void each_pixel(Chunk c, int64_t count, const Body& body) {
  for (int64_t i = 0; i < count; i += kWide) {
    Pixel r = load_loose<float>(c.r + i), g = load_loose<float>(c.g + i), b = load_loose<float>(c.b + i);
    body(r, g, b);
    store_loose<float>(c.r + i, r);
    store_loose<float>(c.g + i, g);
    store_loose<float>(c.b + i, b);
  }
}

// Largest and smallest channel, and 6 x hue in [0, 6); torchvision's rgb -> hsv without saturation.
struct Hsv {
  Pixel top, bottom, range, six;
  Pixel fraction;  // of a sixth, from the top channel's own hue
  Index red_top, green_top;
};

FASTSSL_INLINE Pixel floor_small(Pixel x) {
  const Pixel magic = splat<float>(12582912.0f);
  const Pixel rounded = (x + magic) - magic;
  return rounded - one_where(rounded > x);
}

FASTSSL_INLINE Hsv hsv_of(Pixel r, Pixel g, Pixel b, float six_turns) {
  Hsv c;
  c.top = at_least(at_least(r, g), b);
  c.bottom = at_most(at_most(r, g), b);
  c.range = c.top - c.bottom;
  const Pixel divisor = c.range + one_where(c.range == 0.0f);
  c.red_top = r == c.top;
  c.green_top = g == c.top;
  c.fraction = select<float>(c.red_top, g - b, select<float>(c.green_top, b - r, r - g)) / divisor;
  const Pixel sector = keep_where(~c.red_top, select<float>(c.green_top, splat<float>(2.0f), splat<float>(4.0f)));
  const Pixel six = c.fraction + (sector + six_turns);
  c.six = six - floor_small(six * (1.0f / 6.0f)) * 6.0f;
  return c;
}

// How far a channel lies below the largest, in units of the range, before it is clamped to [0, 1];
// turned by 5 sixths of a turn for red, 3 for green, 1 for blue. `rising`: where it grows with the hue.
FASTSSL_INLINE Pixel raw_drop(Pixel six, float turned, Index* rising) {
  Pixel away = six + turned;
  away -= keep_where(away >= 6.0f, splat<float>(6.0f));
  *rising = away < 2.0f;
  return select<float>(*rising, away, 4.0f - away);
}

FASTSSL_INLINE Pixel turned_channel(const Hsv& c, float turned) {
  Index rising;
  return c.top - c.range * clamped(raw_drop(c.six, turned, &rising));
}

FASTSSL_INLINE void blend(Chunk c, int64_t count, float factor, float red) {
  const float rest = 1.0f - factor;
  each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
    const Pixel other = rest * grey_of(r, g, b, red);
    r = clamped(r * factor + other);
    g = clamped(g * factor + other);
    b = clamped(b * factor + other);
  });
}

inline void apply_line(Chunk c, int64_t count, float factor, float constant) {
  each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
    r = clamped(r * factor + constant);
    g = clamped(g * factor + constant);
    b = clamped(b * factor + constant);
  });
}

inline void apply_hsv(Chunk c, int64_t count, float turns) {
  each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
    const Hsv hsv = hsv_of(r, g, b, 6.0f * turns);
    r = turned_channel(hsv, 5.0f);
    g = turned_channel(hsv, 3.0f);
    b = turned_channel(hsv, 1.0f);
  });
}

inline void apply_matrix(Chunk c, int64_t count, const float* m) {
  each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
    const Pixel x = r, y = g, z = b;
    r = x * m[0] + y * m[1] + z * m[2];
    g = x * m[3] + y * m[4] + z * m[5];
    b = x * m[6] + y * m[7] + z * m[8];
  });
}

inline void apply_posterize(Chunk c, int64_t count, float levels) {
  const float largest = levels - 1.0f, unit = 1.0f / levels;
  const auto coarse = [&](Pixel x) FASTSSL_INLINE_LAMBDA {
    const Pixel bounded = at_most(at_least(x * levels, splat<float>(0.0f)), splat<float>(levels));
    return at_most(floor_small(bounded), splat<float>(largest)) * unit;
  };
  each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
    r = coarse(r), g = coarse(g), b = coarse(b);
  });
}

inline void apply_solarize(Chunk c, int64_t count, float threshold) {
  const auto folded = [&](Pixel x) FASTSSL_INLINE_LAMBDA {
    return select<float>(x >= threshold, 1.0f - x, x);
  };
  each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
    r = folded(r), g = folded(g), b = folded(b);
  });
}

inline void apply(const ColourOp& op, Chunk c, int64_t count) {
  if (op.idle) return;
  switch (op.kind) {
    case kBrightnessOp: return apply_line(c, count, op.factor, 0.0f);
    case kContrastOp:
      return apply_line(c, count, op.factor, (1.0f - op.factor) * op.mean);
    case kSaturationOp: return blend(c, count, op.factor, op.red);
    case kHsvOp: return apply_hsv(c, count, op.factor);
    case kYiqOp: return apply_matrix(c, count, op.matrix);
    case kGrayOp:
      return each_pixel(c, count, [&](Pixel& r, Pixel& g, Pixel& b) FASTSSL_INLINE_LAMBDA {
        r = g = b = grey_of(r, g, b, op.red);
      });
    case kSolarizeOp: return apply_solarize(c, count, op.factor);
    case kPosterizeOp: return apply_posterize(c, count, op.factor);
  }
}

// Sum of grey over `count` pixels, in lanes over a chunk.
inline double sum_grey(Chunk c, int64_t count, float red) {
  const auto grey = [&](int64_t i) FASTSSL_INLINE_LAMBDA {
    return grey_of(load_loose<float>(c.r + i), load_loose<float>(c.g + i),
                   load_loose<float>(c.b + i), red);
  };
  Pixel total = {};
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) total += grey(i);
  if (i < count) total += first_lanes(grey(i), count - i);
  return lanes_sum(total);
}

}  // namespace
