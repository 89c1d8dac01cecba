// Input and output element types against the accumulation type.
#pragma once
#include "ntxent.h"
#include "simd.h"

namespace {

FASTSSL_INLINE float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

FASTSSL_INLINE uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

FASTSSL_INLINE float from_bfloat16(uint16_t h) { return float_of_bits(uint32_t(h) << 16); }

// No denormal float is touched, so that flush-to-zero mode changes nothing.
FASTSSL_INLINE float from_float16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, shifted = uint32_t(h & 0x7fff) << 13;
  const float smallest_normal = float_of_bits(113u << 23);
  const uint32_t denormal = bits_of_float(float_of_bits(shifted + (113u << 23)) - smallest_normal);
  const uint32_t normal = shifted + (shifted >= (31u << 23) ? 224u << 23 : 112u << 23);
  return float_of_bits((shifted < (1u << 23) ? denormal : normal) | sign);
}

FASTSSL_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of_float(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// What rounds to more than 65504 becomes infinite, so that a loss scaler sees it.
FASTSSL_INLINE uint16_t to_float16(float x) {
  const uint32_t bits = bits_of_float(x), size = bits & 0x7fffffff;
  const uint32_t denormal = bits_of_float(float_of_bits(size) + 0.5f) - (126u << 23);
  const uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
  uint32_t out = size < (113u << 23) ? denormal : normal;
  if (size >= 0x477ff000) out = 0x7c00;
  if (size > 0x7f800000) out = 0x7e00;
  return uint16_t(out | (bits >> 16 & 0x8000));
}

template <class T, class Stored, class Convert>
void gather(const Stored* row, int64_t step, int64_t width, T* out, Convert convert) {
  if (step == 1) {
    for (int64_t d = 0; d < width; ++d) out[d] = T(convert(row[d]));
  } else {
    for (int64_t d = 0; d < width; ++d) out[d] = T(convert(row[d * step]));
  }
}

// Row n of a view in the accumulation type: where it lies if it can be used there, else in `out`.
template <class T>
const T* read_row(const fastssl::ViewMemory& view, int dtype, int64_t n, int64_t width, T* out) {
  const int64_t start = n * view.row_step, step = view.column_step;
  const auto same = [](auto x) { return x; };
  switch (dtype) {
    case fastssl::kFloat64: {
      const double* row = static_cast<const double*>(view.data) + start;
      gather(row, step, width, out, same);
      break;
    }
    case fastssl::kFloat32: {
      const float* row = static_cast<const float*>(view.data) + start;
      if (step == 1 && sizeof(T) == sizeof(float)) return reinterpret_cast<const T*>(row);
      gather(row, step, width, out, same);
      break;
    }
    case fastssl::kBfloat16:
      gather(static_cast<const uint16_t*>(view.data) + start, step, width, out, from_bfloat16);
      break;
    default:
      gather(static_cast<const uint16_t*>(view.data) + start, step, width, out, from_float16);
  }
  return out;
}

inline void write_row(const double* row, int64_t width, int dtype, void* base, int64_t index) {
  const int64_t start = index * width;
  switch (dtype) {
    case fastssl::kFloat64: {
      double* out = static_cast<double*>(base) + start;
      for (int64_t d = 0; d < width; ++d) out[d] = row[d];
      break;
    }
    case fastssl::kFloat32: {
      float* out = static_cast<float*>(base) + start;
      for (int64_t d = 0; d < width; ++d) out[d] = float(row[d]);
      break;
    }
    case fastssl::kBfloat16: {
      uint16_t* out = static_cast<uint16_t*>(base) + start;
      for (int64_t d = 0; d < width; ++d) out[d] = to_bfloat16(float(row[d]));
      break;
    }
    default: {
      uint16_t* out = static_cast<uint16_t*>(base) + start;
      for (int64_t d = 0; d < width; ++d) out[d] = to_float16(float(row[d]));
    }
  }
}

}  // namespace
