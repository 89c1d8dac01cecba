// Planes to the views' own type and layout, normalised; and a view's gradient back to planes.
#pragma once
#include "augment.h"
#include "augment_lanes.h"
#include "convert.h"

namespace {

// Per channel x * factor + shift.
struct Normal {
  float factor[3], shift[3];
};

inline Normal normal_of(const fastssl::AugmentCall& call) {
  Normal n;
  for (int c = 0; c < 3; ++c) {
    n.factor[c] = float(1.0 / double(call.std[c]));
    n.shift[c] = float(-double(call.mean[c]) / double(call.std[c]));
  }
  return n;
}

struct Frame {  // one view of one sample in the output
  char* data;
  int64_t pixels;
  int dtype, channels_last;
};

inline Frame frame_of(const fastssl::AugmentCall& call, void* base, int64_t view, int64_t sample) {
  const int64_t pixels = call.size * call.size;
  const int64_t item = call.out_dtype == fastssl::kBfloat16 ? 2 : 4;
  char* data = static_cast<char*>(base) + (view * call.samples + sample) * 3 * pixels * item;
  return {data, pixels, call.out_dtype, call.channels_last};
}

FASTSSL_INLINE void narrow(float x, float* to) { *to = x; }
FASTSSL_INLINE void narrow(float x, uint16_t* to) { *to = to_bfloat16(x); }

template <class T>
void store_interleaved(const float* __restrict r, const float* __restrict g, const float* __restrict b,
                       const Normal& n, int64_t count, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    narrow(r[i] * n.factor[0] + n.shift[0], to + 3 * i);
    narrow(g[i] * n.factor[1] + n.shift[1], to + 3 * i + 1);
    narrow(b[i] * n.factor[2] + n.shift[2], to + 3 * i + 2);
  }
}

template <class T>
void store_plane(const float* __restrict from, float factor, float shift, int64_t count, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) narrow(from[i] * factor + shift, to + i);
}

template <class T>
void store_chunk(Planes from, int64_t at, int64_t count, const Normal& n, const Frame& frame) {
  T* to = reinterpret_cast<T*>(frame.data);
  if (frame.channels_last)
    return store_interleaved(from[0] + at, from[1] + at, from[2] + at, n, count, to + 3 * at);
  for (int c = 0; c < 3; ++c)
    store_plane(from[c] + at, n.factor[c], n.shift[c], count, to + c * frame.pixels + at);
}

inline void store_chunk(Planes from, int64_t at, int64_t count, const Normal& n, const Frame& frame) {
  if (frame.dtype == fastssl::kBfloat16) store_chunk<uint16_t>(from, at, count, n, frame);
  else store_chunk<float>(from, at, count, n, frame);
}

template <class T, class Widen>
void load_view(const Frame& frame, const Normal& n, Planes to, Widen widen) {
  const T* from = reinterpret_cast<const T*>(frame.data);
  for (int c = 0; c < 3; ++c) {
    float* plane = to[c];
    const float factor = n.factor[c];
    if (frame.channels_last) {
      for (int64_t i = 0; i < frame.pixels; ++i) plane[i] = widen(from[3 * i + c]) * factor;
    } else {
      const T* row = from + c * frame.pixels;
      for (int64_t i = 0; i < frame.pixels; ++i) plane[i] = widen(row[i]) * factor;
    }
    const int64_t behind = round_up(frame.pixels, 16) - frame.pixels;
    std::memset(plane + frame.pixels, 0, size_t(behind) * sizeof(float));
  }
}

// The gradient by a view before it was normalised; zeros behind its last pixel.
inline void load_gradient(const Frame& frame, const Normal& n, Planes to) {
  if (frame.dtype == fastssl::kBfloat16)
    load_view<uint16_t>(frame, n, to, [](uint16_t x) { return from_bfloat16(x); });
  else load_view<float>(frame, n, to, [](float x) { return x; });
}

}  // namespace
