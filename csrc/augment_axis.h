// One axis of a crop with antialiased resize: which source pixels an output takes, with what
// weights, and how these move with the box. Every index is clipped to the image, whatever the box.
#pragma once
#include <cmath>

#include "augment_lanes.h"

namespace {

constexpr double kNarrowest = 1e-4;  // a box is at least this wide
constexpr double kEdge = 1e-3;  // a box that ends less than this beyond a pixel's edge ends there

// A box along one axis, clipped to the image: [start, start + length).
struct Span {
  double start, length;
  bool start_clipped, stop_clipped;
};

// Where the box is not a number, or outside, some pixels of the image are taken all the same.
inline Span clip_span(double start, double length, int64_t extent) {
  const double end = double(extent);
  if (!(start - start == 0) || !(length - length == 0)) return {0.0, end, true, true};
  double stop = start + length;
  const bool start_clipped = start < 0, stop_clipped = stop > end;
  if (start_clipped) start = 0;
  if (start > end - kNarrowest) start = end - kNarrowest;
  if (stop_clipped) stop = end;
  if (stop < start + kNarrowest) stop = start + kNarrowest;
  return {start, stop - start, start_clipped, stop_clipped};
}

// f and f' of the interpolation at t; a cubic of a = -1/2.
struct Filter {
  bool cubic;

  double half() const { return cubic ? 2.0 : 1.0; }
  double value(double t) const {
    t = std::fabs(t);
    if (!cubic) return t < 1.0 ? 1.0 - t : 0.0;
    if (t < 1.0) return (1.5 * t - 2.5) * t * t + 1.0;
    return t < 2.0 ? ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0 : 0.0;
  }
  double slope(double t) const {
    const double sign = t < 0 ? -1.0 : t > 0 ? 1.0 : 0.0;
    t = std::fabs(t);
    if (!cubic) return t <= 1.0 ? -sign : 0.0;
    if (t < 1.0) return sign * (4.5 * t - 5.0) * t;
    return t < 2.0 ? sign * ((-1.5 * t + 5.0) * t - 4.0) : 0.0;
  }
};

struct Axis {
  Span span;
  Filter filter;
  double scale, blow_up;      // blow_up = max(scale, 1): how much wider the filter is
  int64_t outputs, padded;    // padded to whole vectors
  int64_t low_edge, high_edge;  // the crop's whole pixels, clipped to the image
  int64_t taps, first, length;  // source pixels first .. first + length - 1 are read
  bool reversed;              // output k lies at outputs - 1 - k
  int reach;                  // 1 or 2 vectors hold what a vector of outputs reads, else 0
  int32_t *low, *relative, *base;  // first tap from `first`; from its vector's base; the base
  float* weight;                   // (taps, padded)

  int64_t place(int64_t output) const { return reversed ? outputs - 1 - output : output; }
  double centre(int64_t output) const { return span.start + scale * (double(output) + 0.5); }
};

// An upper bound of the taps of one output.
inline int64_t most_taps(const Span& span, int64_t outputs, int64_t extent, const Filter& filter) {
  const double scale = span.length / double(outputs);
  const double support = filter.half() * (scale > 1.0 ? scale : 1.0);
  const double bound = 2.0 * support + 3.0;
  return bound < double(extent) ? int64_t(bound) : extent;
}

inline int64_t axis_bytes(int64_t outputs, int64_t taps) {
  const int64_t padded = round_up(outputs, 16);
  return 3 * round_up(padded * 4, 64) + round_up(taps * padded * 4, 64);
}

// Lays the arrays of an axis into `memory`.
inline void place_axis(Axis& axis, char* memory, int64_t outputs) {
  axis.outputs = outputs;
  axis.padded = round_up(outputs, kWide);
  const int64_t room = round_up(round_up(outputs, 16) * 4, 64);
  for (int32_t** array : {&axis.low, &axis.relative, &axis.base}) {
    *array = reinterpret_cast<int32_t*>(memory);
    memory += room;
  }
  axis.weight = reinterpret_cast<float*>(memory);

}

// Bases of the vectors of outputs and indices from them, once `low` is known.
inline void index_vectors(Axis& axis) {
  axis.reach = 1;
  for (int64_t block = 0; block < axis.padded; block += kWide) {
    const int64_t end = block + kWide < axis.outputs ? block + kWide : axis.outputs;
    int32_t base = axis.low[block], most = base;
    for (int64_t x = block; x < end; ++x) {
      if (axis.low[x] < base) base = axis.low[x];
      if (axis.low[x] > most) most = axis.low[x];
    }
    axis.base[block / kWide] = base;
    for (int64_t x = block; x < block + kWide; ++x) axis.relative[x] = x < end ? axis.low[x] - base : 0;
    if (most - base >= kWide && axis.reach == 1) axis.reach = 2;
    if (most - base >= 2 * kWide) axis.reach = 0;
  }
}

// The taps [*begin, *end) of an output in pixels of the image, those at the filter's very edge with
// them; never empty.
inline void taps_of(const Axis& axis, int64_t output, int64_t* begin, int64_t* end) {
  const int64_t low = axis.low_edge, high = axis.high_edge;
  const double centre = axis.centre(output), support = axis.filter.half() * axis.blow_up;
  int64_t a = int64_t(std::ceil(centre - support - 0.5));
  int64_t b = int64_t(std::floor(centre + support - 0.5)) + 1;
  if (a < low) a = low;
  if (b > high) b = high;
  if (a >= high) a = high - 1;
  *begin = a;
  *end = b > a ? b : a + 1;
}

// Fills an axis whose arrays hold `room` taps.
inline void build_axis(Axis& axis, const Span& span, int64_t extent, const Filter& filter,
                       bool reversed, int64_t room) {
  axis.span = span;
  axis.filter = filter;
  axis.reversed = reversed;
  axis.scale = span.length / double(axis.outputs);
  axis.blow_up = axis.scale > 1.0 ? axis.scale : 1.0;
  const int64_t low = int64_t(std::floor(span.start + kEdge));
  const int64_t high = int64_t(std::ceil(span.start + span.length - kEdge));
  axis.low_edge = low > extent - 1 ? extent - 1 : low;
  axis.high_edge = high > extent ? extent : high <= axis.low_edge ? axis.low_edge + 1 : high;
  int64_t begin, end, last;
  taps_of(axis, 0, &axis.first, &end);
  taps_of(axis, axis.outputs - 1, &begin, &last);
  axis.length = last - axis.first;
  axis.taps = 1;
  for (int64_t i = 0; i < axis.outputs; ++i) {
    taps_of(axis, i, &begin, &end);
    axis.low[axis.place(i)] = int32_t(begin - axis.first);
    if (end - begin > axis.taps) axis.taps = end - begin;
  }
  if (axis.taps > room) axis.taps = room;
  std::memset(axis.weight, 0, size_t(axis.taps * axis.padded) * sizeof(float));
  const double per_pixel = 1.0 / axis.blow_up;
  for (int64_t i = 0; i < axis.outputs; ++i) {
    taps_of(axis, i, &begin, &end);
    if (end > begin + axis.taps) end = begin + axis.taps;
    float* w = axis.weight + axis.place(i);
    const double from = 0.5 - axis.centre(i);
    double total = 0;
    for (int64_t p = begin; p < end; ++p) total += filter.value((double(p) + from) * per_pixel);
    const double unit = total != 0.0 ? 1.0 / total : 0.0;
    for (int64_t p = begin; p < end; ++p)
      w[(p - begin) * axis.padded] = float(filter.value((double(p) + from) * per_pixel) * unit);
    if (total == 0.0) w[0] = 1.0f;
  }
  index_vectors(axis);
}

// Room for the weights of transposed(): by source pixel, of the outputs that it counts for.
inline int64_t spread_weights(const Span& span, int64_t outputs, int64_t extent, const Filter& filter) {
  const double per_pixel = double(outputs) / span.length;
  const double bound = 2.0 * filter.half() * (per_pixel > 1.0 ? per_pixel : 1.0) + 3.0;
  const double reach = span.length + 2.0;
  const int64_t sources = round_up(reach < double(extent) ? int64_t(reach) + 1 : extent, 16);
  return sources * (bound < double(outputs) ? int64_t(bound) : outputs);
}

// The same weights from the other side: outputs become sources. `to` holds the arrays, and `room`
// weights at most.
inline void transpose_axis(const Axis& from, int64_t room, Axis* to) {
  to->outputs = from.length;
  to->padded = round_up(from.length, kWide);
  to->first = 0;
  to->length = from.outputs;
  to->taps = 1;
  const auto weighs = [&](int64_t x, int64_t k) { return from.weight[k * from.padded + x]; };
  for (int64_t q = 0; q < to->padded; ++q) to->low[q] = -1, to->relative[q] = 0;
  for (int64_t x = 0; x < from.outputs; ++x)
    for (int64_t k = 0; k < from.taps; ++k) {
      if (weighs(x, k) == 0.0f) continue;
      const int64_t q = from.low[x] + k;
      if (to->low[q] < 0) to->low[q] = int32_t(x);
      to->relative[q] = int32_t(x - to->low[q] + 1);
      if (to->relative[q] > to->taps) to->taps = to->relative[q];
    }
  const int64_t most = room / to->padded;
  if (to->taps > most) to->taps = most;
  std::memset(to->weight, 0, size_t(to->taps * to->padded) * sizeof(float));
  for (int64_t x = 0; x < from.outputs; ++x)
    for (int64_t k = 0; k < from.taps; ++k) {
      const int64_t q = from.low[x] + k;
      if (weighs(x, k) == 0.0f || x - to->low[q] >= to->taps) continue;
      to->weight[(x - to->low[q]) * to->padded + q] = weighs(x, k);
    }
  for (int64_t q = 0; q < from.length; ++q)
    if (to->low[q] < 0) to->low[q] = 0;
  index_vectors(*to);
}

// Sum over outputs and taps of products (taps, padded) with the derivatives of the weights by the
// box's start and length, through its clipping; the taps are taken as fixed.
inline void box_gradient(const Axis& axis, const double* product, double* by_start,
                         double* by_length) {
  const double per_pixel = 1.0 / axis.blow_up, outputs = double(axis.outputs);
  double start = 0, length = 0;  // of the clipped box
  for (int64_t i = 0; i < axis.outputs; ++i) {
    const int64_t at = axis.place(i);
    int64_t begin, end;
    taps_of(axis, i, &begin, &end);
    if (end > begin + axis.taps) end = begin + axis.taps;
    const double from = 0.5 - axis.centre(i);
    // sums over the taps: f, its derivatives by the centre and by blow_up, and with the products
    double f = 0, fc = 0, fs = 0, pf = 0, pc = 0, ps = 0;
    for (int64_t k = 0; k < end - begin; ++k) {
      const double t = (double(begin + k) + from) * per_pixel, p = product[k * axis.padded + at];
      const double value = axis.filter.value(t), slope = axis.filter.slope(t) * per_pixel;
      f += value, fc -= slope, fs -= slope * t;
      pf += p * value, pc -= p * slope, ps -= p * slope * t;
    }
    if (f == 0.0) continue;
    const double unit = 1.0 / f;
    const double by_centre = unit * (pc - pf * fc / f);
    start += by_centre;
    length += by_centre * (double(i) + 0.5) / outputs;
    if (axis.scale >= 1.0) length += unit * (ps - pf * fs / f) / outputs;
  }
  *by_length = axis.span.stop_clipped ? 0.0 : length;
  *by_start = (axis.span.start_clipped ? 0.0 : start - length) + *by_length;
}

}  // namespace
