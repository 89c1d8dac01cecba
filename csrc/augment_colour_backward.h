// Derivatives of the steps of augment_colour.h, a chunk at a time: the gradient of a step's output
// becomes that of its input, and the factor's is returned. Beyond the pixels the gradient is zero.
#pragma once
#include "augment_colour.h"

namespace {

// body(r, g, b, gr, gg, gb) on every vector of a chunk; the gradient is written back.
template <class Body> FASTSSL_INLINE void each_gradient(Chunk x, Chunk g, int64_t count, const Body& body) {
  for (int64_t i = 0; i < count; i += kWide) {
    Pixel gr = load_loose<float>(g.r + i), gg = load_loose<float>(g.g + i), gb = load_loose<float>(g.b + i);
    body(load_loose<float>(x.r + i), load_loose<float>(x.g + i), load_loose<float>(x.b + i), gr, gg, gb);
    store_loose<float>(g.r + i, gr);
    store_loose<float>(g.g + i, gg);
    store_loose<float>(g.b + i, gb);
  }
}

// The gradient where the step's result was not clamped.
FASTSSL_INLINE Pixel unclamped(Pixel result, Pixel gradient, bool idle) {
  return idle ? gradient : keep_where((result >= 0.0f) & (result <= 1.0f), gradient);
}

struct FactorGradient {
  double factor, mean;
};

// factor x + (1 - factor) other, `other` a constant; its own gradient is returned as `mean`.
inline FactorGradient back_line(const ColourOp& op, float other, Chunk x, Chunk g, int64_t count) {
  const float factor = op.factor, shift = (1.0f - factor) * other;
  Pixel by_factor = {}, total = {};
  each_gradient(x, g, count, [&](Pixel r, Pixel gn, Pixel b, Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    gr = unclamped(r * factor + shift, gr, op.idle);
    gg = unclamped(gn * factor + shift, gg, op.idle);
    gb = unclamped(b * factor + shift, gb, op.idle);
    by_factor += gr * (r - other) + gg * (gn - other) + gb * (b - other);
    total += gr + gg + gb;
    gr *= factor, gg *= factor, gb *= factor;
  });
  return {lanes_sum(by_factor), lanes_sum(total) * (1.0 - double(factor))};
}

inline double back_saturation(const ColourOp& op, Chunk x, Chunk g, int64_t count) {
  const float factor = op.factor, rest = 1.0f - factor;
  Pixel by_factor = {};
  each_gradient(x, g, count, [&](Pixel r, Pixel gn, Pixel b, Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    const Pixel grey = grey_of(r, gn, b, op.red), shift = grey * rest;
    gr = unclamped(r * factor + shift, gr, op.idle);
    gg = unclamped(gn * factor + shift, gg, op.idle);
    gb = unclamped(b * factor + shift, gb, op.idle);
    by_factor += gr * (r - grey) + gg * (gn - grey) + gb * (b - grey);
    const Pixel total = (gr + gg + gb) * rest;
    gr = gr * factor + total * op.red;
    gg = gg * factor + total * kGreen;
    gb = gb * factor + total * kBlue;
  });
  return lanes_sum(by_factor);
}

inline double back_matrix(const ColourOp& op, Chunk x, Chunk g, int64_t count) {
  const float *m = op.matrix, *s = op.matrix_slope;
  Pixel by_turns = {};
  each_gradient(x, g, count, [&](Pixel r, Pixel gn, Pixel b, Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    by_turns += gr * (r * s[0] + gn * s[1] + b * s[2]) + gg * (r * s[3] + gn * s[4] + b * s[5]) +
                gb * (r * s[6] + gn * s[7] + b * s[8]);
    const Pixel p = gr, q = gg, t = gb;
    gr = p * m[0] + q * m[3] + t * m[6];
    gg = p * m[1] + q * m[4] + t * m[7];
    gb = p * m[2] + q * m[5] + t * m[8];
  });
  return lanes_sum(by_turns);
}

// One output channel of the hue step: adds to the gradients by the largest channel, by the range
// (negative) and by the hue in sixths (negative, over the range).
FASTSSL_INLINE void back_channel(const Hsv& c, float turned, Pixel g, Pixel* top, Pixel* range, Pixel* six) {
  Index rising;
  const Pixel raw = raw_drop(c.six, turned, &rising), drop = clamped(raw);
  *top += g;
  *range += g * drop;
  *six += keep_where(raw == drop, select<float>(rising, g, -g));
}

// Equal channels share the gradient of the largest and of the smallest, as torch's amax and amin.
inline double back_hsv(const ColourOp& op, Chunk x, Chunk g, int64_t count) {
  Pixel by_turns = {};
  each_gradient(x, g, count, [&](Pixel r, Pixel gn, Pixel b, Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    const Hsv c = hsv_of(r, gn, b, 6.0f * op.factor);
    Pixel top = {}, range = {}, six = {};
    back_channel(c, 5.0f, gr, &top, &range, &six);
    back_channel(c, 3.0f, gg, &top, &range, &six);
    back_channel(c, 1.0f, gb, &top, &range, &six);
    by_turns -= c.range * six;
    six = keep_where(c.range != 0.0f, six);
    range = six * c.fraction - range;
    top += range;
    const Pixel rt = one_where(c.red_top), gt = one_where(c.green_top), bt = one_where(b == c.top);
    const Pixel rl = one_where(r == c.bottom), gl = one_where(gn == c.bottom), bl = one_where(b == c.bottom);
    top /= rt + gt + bt;
    range /= rl + gl + bl;
    const Index green_alone = ~c.red_top & c.green_top;
    const Index blue_alone = ~c.red_top & ~c.green_top;
    gr = rt * top - rl * range + keep_where(green_alone, six) - keep_where(blue_alone, six);
    gg = gt * top - gl * range + keep_where(blue_alone, six) - keep_where(c.red_top, six);
    gb = bt * top - bl * range + keep_where(c.red_top, six) - keep_where(green_alone, six);
  });
  return 6.0 * lanes_sum(by_turns);
}

inline void back_gray(const ColourOp& op, Chunk g, int64_t count) {
  each_pixel(g, count, [&](Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    const Pixel total = gr + gg + gb;
    gr = total * op.red;
    gg = total * kGreen;
    gb = total * kBlue;
  });
}

// Through one step, of which x is the input.
inline FactorGradient back_step(const ColourOp& op, Chunk x, Chunk g, int64_t count) {
  switch (op.kind) {
    case kBrightnessOp: return {back_line(op, 0.0f, x, g, count).factor, 0.0};
    case kContrastOp: return back_line(op, op.mean, x, g, count);
    case kSaturationOp: return {back_saturation(op, x, g, count), 0.0};
    case kHsvOp: return {back_hsv(op, x, g, count), 0.0};
    case kYiqOp: return {back_matrix(op, x, g, count), 0.0};
    default: back_gray(op, g, count);
  }
  return {0.0, 0.0};
}

// The gradient where x was below the threshold, minus it elsewhere.
inline void back_solarize(Chunk x, Chunk g, int64_t count, float threshold) {
  each_gradient(x, g, count, [&](Pixel r, Pixel gn, Pixel b, Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    gr = select<float>(r >= threshold, -gr, gr);
    gg = select<float>(gn >= threshold, -gg, gg);
    gb = select<float>(b >= threshold, -gb, gb);
  });
}

inline void back_clamp(Chunk x, Chunk g, int64_t count) {
  each_gradient(x, g, count, [&](Pixel r, Pixel gn, Pixel b, Pixel& gr, Pixel& gg, Pixel& gb) FASTSSL_INLINE_LAMBDA {
    gr = unclamped(r, gr, false);
    gg = unclamped(gn, gg, false);
    gb = unclamped(b, gb, false);
  });
}

}  // namespace
