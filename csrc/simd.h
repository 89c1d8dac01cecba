// Vectors of the instruction set this file is compiled for, and 2^x on them. Included only by the
// sources that setup.py compiles once per instruction set: everything here lives in an anonymous
// namespace, so that no AVX-512 body can stand in for a baseline one at link time.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FASTSSL_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 12;  // 24 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRows = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRows = 12;  // 24 of 32
#else
constexpr int kVectorBytes = 16, kRows = 6;  // 12 of 16
#endif

template <class T> struct Simd;

template <> struct Simd<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef float Loose __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Int;
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr int kMantissa = 23;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kSmallest = -125.5f;   // 2^x below this is flushed to an exact zero
  // Minimax of 2^f on |f| <= 1/2 in relative error: 2e-9, below the rounding of its evaluation.
  static constexpr float kExp2[7] = {1.0000000005546077f,    0.69314720575218624f,
                                     0.24022646888362567f,   0.055503287444208425f,
                                     0.0096184891001880134f, 0.0013399944413356910f,
                                     0.00015345800633336210f};
  // Minimax of log(1 + e) / t in u = t^2 with t = e / (2 + e), 0 <= e <= 1: 4e-9.
  static constexpr float kLog1p[5] = {2.0000000079209268f, 0.66666314681083542f,
                                      0.40024910319151025f, 0.27960602389001225f,
                                      0.28178336012354090f};
};

template <> struct Simd<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef double Loose __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Int;
  typedef int64_t Ints __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr int kMantissa = 52;
  static constexpr double kMagic = 6755399441055744.0;
  static constexpr double kSmallest = -1021.5;
  // The same to 3e-18.
  static constexpr double kExp2[12] = {
      0.9999999999999999971,    0.69314718055994533049,    0.24022650695910156289,
      0.055504108664819919828,  0.0096181291075883031574,  0.0013333558146790239066,
      0.00015403530462555887541, 0.000015252733489772618678, 1.3215433068203980012e-6,
      1.0178198078075182661e-7, 7.0741094522928012121e-9,  4.4352788969802144846e-10};
  // The same to 9e-22.
  static constexpr double kLog1p[13] = {
      2.0,
      0.66666666666666666117,
      0.40000000000000275195,
      0.28571428571374445441,
      0.22222222227746673083,
      0.18181817846796274336,
      0.1538462839637678342,
      0.13332995772867882195,
      0.11770672043408715627,
      0.1045444336066013789,
      0.10101198491410069808,
      0.057750660374182597844,
      0.16088097914152678289};
};

template <class T> using Vec = typename Simd<T>::Vec;
template <class T> using Ints = typename Simd<T>::Ints;
template <class T> constexpr int kLanes = kVectorBytes / int(sizeof(T));
template <class T> constexpr int kPanel = 2 * kLanes<T>;  // columns of the register block

template <class T> FASTSSL_INLINE Vec<T> splat(T x) { return Vec<T>{} + x; }
template <class T> FASTSSL_INLINE Vec<T> load(const T* p) { return *(const Vec<T>*)p; }
template <class T> FASTSSL_INLINE void store(T* p, Vec<T> x) { *(Vec<T>*)p = x; }
template <class T> FASTSSL_INLINE Vec<T> load_loose(const T* p) {
  return *(const typename Simd<T>::Loose*)p;
}
template <class T> FASTSSL_INLINE void store_loose(T* p, Vec<T> x) {
  *(typename Simd<T>::Loose*)p = x;
}

// Past the caches: for data that is read again only after they have been overwritten.
template <class T> FASTSSL_INLINE void store_stream(T* p, Vec<T> x) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)x);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i*)p, (__m128i)x);
#else
  store<T>(p, x);
#endif
}

FASTSSL_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T> FASTSSL_INLINE Vec<T> select(Ints<T> mask, Vec<T> yes, Vec<T> no) {
  return (Vec<T>)((mask & (Ints<T>)yes) | (~mask & (Ints<T>)no));
}

template <class T> FASTSSL_INLINE T sum_lanes(Vec<T> x) {
  T total = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) total += x[lane];
  return total;
}

// The first and the second halves of a and b, lane by lane in turn.
#if defined(__clang__)
template <class T, int... I>
FASTSSL_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, int half, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  return half ? __builtin_shufflevector(a, b, (L / 2 + I / 2 + I % 2 * L)...)
              : __builtin_shufflevector(a, b, (I / 2 + I % 2 * L)...);
}
#else
template <class T, int... I>
FASTSSL_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, int half, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  using Int = typename Simd<T>::Int;
  return half ? __builtin_shuffle(a, b, Ints<T>{Int(L / 2 + I / 2 + I % 2 * L)...})
              : __builtin_shuffle(a, b, Ints<T>{Int(I / 2 + I % 2 * L)...});
}
#endif

// A kLanes x kLanes square, transposed: log2(kLanes) rounds of a perfect shuffle of its rows.
template <class T>
FASTSSL_INLINE void transpose_square(const T* from, int64_t from_step, T* to, int64_t to_step) {
  constexpr int L = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  Vec<T> row[L], next[L];
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) row[r] = load<T>(from + r * from_step);
#pragma GCC unroll 4
  for (int size = 1; size < L; size *= 2) {
#pragma GCC unroll 16
    for (int r = 0; r < L; ++r) next[r] = interleave<T>(row[r / 2], row[r / 2 + L / 2], r % 2, lanes);
#pragma GCC unroll 16
    for (int r = 0; r < L; ++r) row[r] = next[r];
  }
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) store<T>(to + r * to_step, row[r]);
}

// 2^x where the result is a normal number; the default NaN stays NaN (its low bits are zero, so
// that the exponent arithmetic leaves it alone). The caller vouches for the range.
template <class T> FASTSSL_INLINE Vec<T> exp2_normal(Vec<T> x) {
  const Vec<T> shifted = x + Simd<T>::kMagic;
  const Vec<T> f = x - (shifted - Simd<T>::kMagic);
  constexpr int degree = int(sizeof(Simd<T>::kExp2) / sizeof(T)) - 1;
  Vec<T> p = splat<T>(Simd<T>::kExp2[degree]);
#pragma GCC unroll 12
  for (int k = degree - 1; k >= 0; --k) p = p * f + Simd<T>::kExp2[k];
  using Bits = typename Simd<T>::Bits;  // unsigned: the shift drops the bits of kMagic
  return (Vec<T>)((Bits)p + ((Bits)shifted << Simd<T>::kMantissa));
}

// 2^x for any x <= 0 (or a little above): what would not be normal is an exact zero.
template <class T> FASTSSL_INLINE Vec<T> exp2_flushed(Vec<T> x) {
  const Ints<T> tiny = x < Simd<T>::kSmallest;
  return (Vec<T>)(~tiny & (Ints<T>)exp2_normal<T>(x));
}

}  // namespace
