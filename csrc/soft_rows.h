// One row of the soft-target cross entropy: sums and gradients over its C outputs. Exponents are in
// units of log 2 and shifted by the row's maximum; sums of a block of lanes are merged in double.
#pragma once
#include <cmath>

#include "simd.h"

#define FASTSSL_INLINE_LAMBDA __attribute__((always_inline))

namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kBlock = 1024;  // outputs whose sum is kept in the accumulation type

template <class T> FASTSSL_INLINE Vec<T> take(const T* p, int count, T fill) {
  if (count == kLanes<T>) return load_loose<T>(p);
  Vec<T> x = splat<T>(fill);
  std::memcpy(&x, p, size_t(count) * sizeof(T));
  return x;
}

template <class T> FASTSSL_INLINE void put(T* p, Vec<T> x, int count) {
  if (count == kLanes<T>) store_loose<T>(p, x);
  else std::memcpy(p, &x, size_t(count) * sizeof(T));
}

// The first lanes; the others exact zeros.
template <class T> FASTSSL_INLINE Vec<T> keep(Vec<T> x, int count) {
  if (count == kLanes<T>) return x;
  Vec<T> kept = {};
  std::memcpy(&kept, &x, size_t(count) * sizeof(T));
  return kept;
}

// 2^x for x <= 0; every NaN stays one, whatever its low bits.
template <class T> FASTSSL_INLINE Vec<T> exp2_row(Vec<T> x) {
  return select<T>(x != x, x, exp2_flushed<T>(x));
}

template <class T> FASTSSL_INLINE double widened(Vec<T> x) {
  double total = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) total += double(x[lane]);
  return total;
}

// body(column, count) over a row, a vector at a time; merge() after every block of columns.
template <class T, class Body, class Merge>
FASTSSL_INLINE void sweep(int64_t columns, const Body& body, const Merge& merge) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
  while (c + L <= columns) {
    const int64_t end = c + kBlock < columns ? c + kBlock : columns;
    for (; c + L <= end; c += L) body(c, L);
    merge();
  }
  if (c < columns) {
    body(c, int(columns - c));
    merge();
  }
}

template <class T, class Body> FASTSSL_INLINE void sweep(int64_t columns, const Body& body) {
  sweep<T>(columns, body, [] {});
}

// The largest number of a row, NaN left out: the sum of exponentials brings it back.
template <class T> T row_top(const T* x, int64_t columns) {
  constexpr int L = kLanes<T>;
  const T lowest = -T(__builtin_inf());
  Vec<T> top[4] = {splat<T>(lowest), splat<T>(lowest), splat<T>(lowest), splat<T>(lowest)};
  int64_t c = 0;
  for (; c + 4 * L <= columns; c += 4 * L)
    for (int k = 0; k < 4; ++k) {
      const Vec<T> here = load_loose<T>(x + c + k * L);
      top[k] = select<T>(here > top[k], here, top[k]);
    }
  T best = lowest;
  for (int k = 0; k < 4; ++k)
    for (int lane = 0; lane < L; ++lane)
      if (top[k][lane] > best) best = top[k][lane];
  for (; c < columns; ++c)
    if (x[c] > best) best = x[c];
  return best;
}

// A softmax over a row: scale, maximum, and the log of the sum of exp(scale (x - top)).
template <class T> struct Softmax {
  double scale;
  T top;
  double log_sum;

  FASTSSL_INLINE T per_unit() const { return T(scale * kLog2E); }
  FASTSSL_INLINE T offset() const { return T(log_sum * kLog2E); }
};

// Cross entropy of softmax y against softmax x in one pass; exp(scale (y - top)) goes to `e` if any.
template <class T>
double logits_loss(const T* x, const T* y, int64_t columns, Softmax<T>& sx, Softmax<T>& sy, T* e) {
  sx.top = row_top(x, columns);
  sy.top = row_top(y, columns);
  const T kx = sx.per_unit(), ky = sy.per_unit();
  double sum_x = 0, sum_y = 0, dot = 0;
  Vec<T> part_x = {}, part_y = {}, part_dot = {};
  sweep<T>(
      columns,
      [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
        const Vec<T> dx = take<T>(x + c, count, sx.top) - sx.top;
        const Vec<T> dy = take<T>(y + c, count, sy.top) - sy.top;
        const Vec<T> ex = keep<T>(exp2_row<T>(dx * kx), count);
        const Vec<T> ey = keep<T>(exp2_row<T>(dy * ky), count);
        part_x += ex;
        part_y += ey;
        part_dot += ey * keep<T>(dx, count);
        if (e) put<T>(e + c, ey, count);
      },
      [&] {
        sum_x += widened<T>(part_x);
        sum_y += widened<T>(part_y);
        dot += widened<T>(part_dot);
        part_x = part_y = part_dot = Vec<T>{};
      });
  sx.log_sum = std::log(sum_x);
  sy.log_sum = std::log(sum_y);
  return sx.log_sum - sx.scale * (dot / sum_y);
}

// Cross entropy of target probabilities t against softmax x; `e` may be x itself, or null.
template <class T>
double given_loss(const T* x, const T* t, int64_t columns, Softmax<T>& sx, double& total, T* e) {
  sx.top = row_top(x, columns);
  const T kx = sx.per_unit();
  double sum_x = 0, dot = 0;
  Vec<T> part_x = {}, part_t = {}, part_dot = {};
  total = 0;
  sweep<T>(
      columns,
      [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
        const Vec<T> dx = take<T>(x + c, count, sx.top) - sx.top;
        const Vec<T> target = take<T>(t + c, count, T(0));
        const Vec<T> ex = keep<T>(exp2_row<T>(dx * kx), count);
        part_x += ex;
        part_t += target;
        part_dot += target * keep<T>(dx, count);
        if (e) put<T>(e + c, ex, count);
      },
      [&] {
        sum_x += widened<T>(part_x);
        total += widened<T>(part_t);
        dot += widened<T>(part_dot);
        part_x = part_t = part_dot = Vec<T>{};
      });
  sx.log_sum = std::log(sum_x);
  return sx.log_sum * total - sx.scale * dot;
}

// to += e * factor
template <class T> void add_scaled(const T* e, T factor, int64_t columns, T* to) {
  sweep<T>(columns, [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
    put<T>(to + c, take<T>(to + c, count, T(0)) + take<T>(e + c, count, T(0)) * factor, count);
  });
}

// x = e * pull - t * push, in place of e
template <class T>
void mix(const T* e, T pull, const T* t, T push, int64_t columns, T* out) {
  sweep<T>(columns, [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
    const Vec<T> mixed = take<T>(e + c, count, T(0)) * pull - take<T>(t + c, count, T(0)) * push;
    put<T>(out + c, mixed, count);
  });
}

// The probabilities of softmax y, to q; returns their sum weighted by h.
template <class T>
double weighted_probabilities(const T* y, const Softmax<T>& sy, const T* h, int64_t columns, T* q) {
  const T ky = sy.per_unit(), offset = sy.offset();
  double total = 0;
  Vec<T> part = {};
  sweep<T>(
      columns,
      [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
        const Vec<T> dy = take<T>(y + c, count, sy.top) - sy.top;
        const Vec<T> p = exp2_row<T>(dy * ky - offset);
        put<T>(q + c, p, count);
        part += keep<T>(p * take<T>(h + c, count, T(0)), count);
      },
      [&] {
        total += widened<T>(part);
        part = Vec<T>{};
      });
  return total;
}

// What one row of the backward reads; q: probabilities of y where they are at hand already.
template <class T> struct RowGradient {
  const T *x, *y, *q, *h;
  Softmax<T> sx, sy;
  double g, loss, expected_h;
  T *dx, *dy;  // dy may be null
};

// dx = g scale_x (p - q),  dy = scale_y q (u - sum q u)  with  u = h - g log p.
template <class T> void logits_gradient(const RowGradient<T>& row, int64_t columns) {
  const T kx = row.sx.per_unit(), ky = row.sy.per_unit();
  const T offset_x = row.sx.offset(), offset_y = row.sy.offset();
  const T pull = T(row.g * row.sx.scale), scale_y = T(row.sy.scale), g = T(row.g);
  const T scale_x = T(row.sx.scale), log_sum = T(row.sx.log_sum);
  const T expected = T(row.g * row.loss + row.expected_h);
  sweep<T>(columns, [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
    const Vec<T> dx = take<T>(row.x + c, count, row.sx.top) - row.sx.top;
    const Vec<T> p = exp2_row<T>(dx * kx - offset_x);
    Vec<T> q;
    if (row.q) {
      q = take<T>(row.q + c, count, T(0));
    } else {
      const Vec<T> dy = take<T>(row.y + c, count, row.sy.top) - row.sy.top;
      q = exp2_row<T>(dy * ky - offset_y);
    }
    put<T>(row.dx + c, (p - q) * pull, count);
    if (!row.dy) return;
    Vec<T> u = (log_sum - dx * scale_x) * g - expected;
    if (row.h) u += take<T>(row.h + c, count, T(0));
    put<T>(row.dy + c, q * u * scale_y, count);
  });
}

// dx = g scale (total p - t)
template <class T>
void given_gradient(const T* x, const T* t, const Softmax<T>& sx, double g, double total,
                    int64_t columns, T* dx) {
  const T kx = sx.per_unit(), offset = sx.offset();
  const T pull = T(g * sx.scale * total), push = T(g * sx.scale);
  sweep<T>(columns, [&](int64_t c, int count) FASTSSL_INLINE_LAMBDA {
    const Vec<T> d = take<T>(x + c, count, sx.top) - sx.top;
    put<T>(dx + c, exp2_row<T>(d * kx - offset) * pull - take<T>(t + c, count, T(0)) * push, count);
  });
}

}  // namespace
