// Cuts one leased block of memory into the arrays of a call.
#pragma once
#include <cstdint>

namespace {

struct Carver {
  char* next;
  template <class U> U* take(int64_t count) {
    U* here = reinterpret_cast<U*>(next);
    next += bytes<U>(count);
    return here;
  }
  template <class U> static int64_t bytes(int64_t count) {
    return (count * int64_t(sizeof(U)) + 63) / 64 * 64;
  }
};

}  // namespace
