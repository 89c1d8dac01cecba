// Raw keys into a ring of unit rows on the CPU: normalise, cast and write in one pass. Compiled once
// per instruction set (setup.py gives FASTSSL_ISA).
#include "enqueue.h"

#include "pack.h"
#include "pool.h"
#include "threads.h"

namespace {

using fastssl::Enqueue;
using fastssl::Lease;
using fastssl::Team;

constexpr double kNumbersPerRank = 6e4;  // below which one more thread does not pay
constexpr int kMostRanks = 64;

template <class T> constexpr int kOwnDtype = sizeof(T) == 8 ? fastssl::kFloat64 : fastssl::kFloat32;

template <class T> void cast_row(const T* row, int64_t width, int dtype, void* rows, int64_t at) {
  if (dtype == fastssl::kBfloat16) {
    uint16_t* out = static_cast<uint16_t*>(rows) + at * width;
    for (int64_t d = 0; d < width; ++d) out[d] = to_bfloat16(float(row[d]));
  } else if (dtype == fastssl::kFloat16) {
    uint16_t* out = static_cast<uint16_t*>(rows) + at * width;
    for (int64_t d = 0; d < width; ++d) out[d] = to_float16(float(row[d]));
  } else if (dtype == fastssl::kFloat32) {
    float* out = static_cast<float*>(rows) + at * width;
    for (int64_t d = 0; d < width; ++d) out[d] = float(row[d]);
  } else {
    double* out = static_cast<double*>(rows) + at * width;
    for (int64_t d = 0; d < width; ++d) out[d] = double(row[d]);
  }
}

template <class T> struct State {
  const Enqueue& call;
  char* memory;
  int64_t first, start;  // the first key that stays, and its row

  static int64_t row_bytes(int64_t width) { return (width * int64_t(sizeof(T)) + 63) / 64 * 64; }

  void write(int rank, int64_t begin, int64_t end) const {
    T* raw = reinterpret_cast<T*>(memory + 2 * rank * row_bytes(call.width));
    T* unit = reinterpret_cast<T*>(memory + (2 * rank + 1) * row_bytes(call.width));
    for (int64_t n = begin; n < end; ++n) {
      int64_t at = start + n;
      if (at >= call.capacity) at -= call.capacity;
      const T* row = read_row<T>(call.keys, call.keys_dtype, first + n, call.width, raw);
      const bool own = call.rows_dtype == kOwnDtype<T>;
      T* out = own ? static_cast<T*>(call.rows) + at * call.width : unit;
      normalise(row, call.width, out);
      if (!own) cast_row(unit, call.width, call.rows_dtype, call.rows, at);
    }
  }
};

template <class T> int enqueue(const Enqueue& call) {
  const int64_t stay = call.count < call.capacity ? call.count : call.capacity;
  const int64_t first = call.count - stay;
  const double useful = 1.0 + double(stay) * double(call.width) / kNumbersPerRank;
  int ranks = call.threads < kMostRanks ? call.threads : kMostRanks;
  if (double(ranks) > useful) ranks = int(useful);
  if (ranks < 1) ranks = 1;
  const Lease lease(size_t(2 * ranks * State<T>::row_bytes(call.width)));
  if (!lease.get()) return 1;
  State<T> state{call, lease.get(), first, (*call.pointer + first) % call.capacity};
  const auto body = [](void* context, const Team& team) {
    const State<T>& whole = *static_cast<const State<T>*>(context);
    const int64_t keys = whole.call.count - whole.first;
    team.each([&](int rank) {
      whole.write(rank, keys * rank / team.ranks, keys * (rank + 1) / team.ranks);
    });
  };
  fastssl::run_team(ranks, body, &state);
  *call.pointer = (*call.pointer + call.count) % call.capacity;
  return 0;
}

int enqueue_any(const Enqueue& call) {
  return call.keys_dtype == fastssl::kFloat64 ? enqueue<double>(call) : enqueue<float>(call);
}

#define FASTSSL_JOIN_(a, b) a##b
#define FASTSSL_JOIN(a, b) FASTSSL_JOIN_(a, b)

}  // namespace

fastssl::EnqueueKernel fastssl::FASTSSL_JOIN(enqueue_, FASTSSL_ISA)() { return enqueue_any; }
