// Cross entropy against soft targets on the CPU, compiled once per instruction set (setup.py gives
// FASTSSL_ISA). A thread owns whole rows; no probabilities are kept: the backward takes them again
// from the logits and four numbers per row. The batch marginal is summed per thread, in double every
// kFlush rows, and merged in the order of the threads.
#include "soft_targets.h"

#include "convert.h"
#include "pool.h"
#include "soft_rows.h"
#include "threads.h"

namespace {

using fastssl::Lease;
using fastssl::SoftTargets;
using fastssl::Team;

constexpr int kMostRanks = 64;
constexpr int64_t kFlush = 32;
constexpr double kOutputsPerRank = 3e4;  // below which one more thread does not pay

int choose_ranks(const SoftTargets& call) {
  const double useful = 1.0 + double(call.rows) * double(call.columns) / kOutputsPerRank;
  int64_t ranks = call.threads;
  if (double(ranks) > useful) ranks = int64_t(useful);
  if (ranks > call.rows) ranks = call.rows;
  if (ranks > kMostRanks) ranks = kMostRanks;
  return ranks < 1 ? 1 : int(ranks);
}

// The buffers of one rank: rows of C numbers, each at a cache line of its own.
template <class T> struct Scratch {
  T *x, *y, *e, *dx, *dy, *part;
  double* marginal;

  static int64_t row_bytes(int64_t columns) { return (columns * int64_t(sizeof(T)) + 63) / 64 * 64; }
  static int64_t bytes(int64_t columns) {
    return 6 * row_bytes(columns) + (columns * int64_t(sizeof(double)) + 63) / 64 * 64;
  }
  Scratch(char* memory, int64_t columns) {
    for (T** row : {&x, &y, &e, &dx, &dy, &part}) {
      *row = reinterpret_cast<T*>(memory);
      memory += row_bytes(columns);
    }
    marginal = reinterpret_cast<double*>(memory);
  }
};

template <class T> struct State {
  const SoftTargets& call;
  char* memory;
  int ranks;

  Scratch<T> scratch(int rank) const {
    return Scratch<T>(memory + rank * Scratch<T>::bytes(call.columns), call.columns);
  }
  T* stat(int which) const { return static_cast<T*>(call.stats) + which * call.rows; }
  T* loss() const { return static_cast<T*>(call.loss); }
  const T* g_loss() const { return static_cast<const T*>(call.g_loss); }
  const T* student(int64_t n, const Scratch<T>& s) const {
    return read_row<T>(call.student, call.student_dtype, n, call.columns, s.x);
  }
  const T* teacher(int64_t n, const Scratch<T>& s) const {
    const T* row = read_row<T>(call.teacher, call.teacher_dtype, n, call.columns, s.y);
    if (!call.centre) return row;
    mix<T>(row, T(1), static_cast<const T*>(call.centre), T(1), call.columns, s.y);
    return s.y;
  }
  Softmax<T> softmax(int which, int64_t n, double scale) const {
    return {scale, stat(2 * which)[n], double(stat(2 * which + 1)[n])};
  }
};

template <class T> constexpr int kOwnDtype = sizeof(T) == 8 ? fastssl::kFloat64 : fastssl::kFloat32;

// Where a gradient row is computed: in its place if it has the accumulation type.
template <class T> T* row_target(void* base, int dtype, int64_t n, int64_t columns, T* scratch) {
  return dtype == kOwnDtype<T> ? static_cast<T*>(base) + n * columns : scratch;
}

template <class T> void write_narrow(const T* row, int64_t columns, int dtype, void* base, int64_t n) {
  if (dtype == kOwnDtype<T>) return;
  if (dtype == fastssl::kFloat32) {
    float* out = static_cast<float*>(base) + n * columns;
    for (int64_t c = 0; c < columns; ++c) out[c] = float(row[c]);
  } else if (dtype == fastssl::kBfloat16) {
    uint16_t* out = static_cast<uint16_t*>(base) + n * columns;
    for (int64_t c = 0; c < columns; ++c) out[c] = to_bfloat16(float(row[c]));
  } else {
    uint16_t* out = static_cast<uint16_t*>(base) + n * columns;
    for (int64_t c = 0; c < columns; ++c) out[c] = to_float16(float(row[c]));
  }
}

template <class T> void flush_marginal(const Scratch<T>& s, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    s.marginal[c] += double(s.part[c]);
    s.part[c] = T(0);
  }
}

template <class T> void logits_forward(const State<T>& state, int rank, int64_t begin, int64_t end) {
  const SoftTargets& call = state.call;
  const Scratch<T> s = state.scratch(rank);
  if (call.marginal) {
    std::memset(s.part, 0, size_t(call.columns) * sizeof(T));
    std::memset(s.marginal, 0, size_t(call.columns) * sizeof(double));
  }
  for (int64_t n = begin; n < end; ++n) {
    Softmax<T> sx{call.student_scale, 0, 0}, sy{call.teacher_scale, 0, 0};
    T* e = call.marginal ? s.e : nullptr;
    const T* x = state.student(n, s);
    const double loss = logits_loss(x, state.teacher(n, s), call.columns, sx, sy, e);
    state.loss()[n] = T(loss);
    const T stats[4] = {sx.top, T(sx.log_sum), sy.top, T(sy.log_sum)};
    for (int k = 0; k < 4; ++k) state.stat(k)[n] = stats[k];
    if (!e) continue;
    add_scaled<T>(e, T(std::exp(-sy.log_sum)), call.columns, s.part);
    if ((n - begin) % kFlush == kFlush - 1 || n == end - 1) flush_marginal(s, call.columns);
  }
}

template <class T> void merge_marginal(const State<T>& state, int64_t begin, int64_t end) {
  T* marginal = static_cast<T*>(state.call.marginal);
  for (int64_t c = begin; c < end; ++c) {
    double total = 0;
    for (int rank = 0; rank < state.ranks; ++rank) total += state.scratch(rank).marginal[c];
    marginal[c] = T(total / double(state.call.rows));
  }
}

template <class T> void logits_backward(const State<T>& state, int rank, int64_t begin, int64_t end) {
  const SoftTargets& call = state.call;
  const Scratch<T> s = state.scratch(rank);
  const int64_t columns = call.columns;
  const T* h = static_cast<const T*>(call.g_marginal);
  for (int64_t n = begin; n < end; ++n) {
    const T *x = state.student(n, s), *y = state.teacher(n, s);
    const Softmax<T> sx = state.softmax(0, n, call.student_scale);
    const Softmax<T> sy = state.softmax(1, n, call.teacher_scale);
    RowGradient<T> row{x, y, nullptr, h, sx, sy, double(state.g_loss()[n]),
                       double(state.loss()[n]), 0, nullptr, nullptr};
    if (h) {
      row.expected_h = weighted_probabilities(y, sy, h, columns, s.e);
      row.q = s.e;
    }
    row.dx = row_target(call.g_student, call.student_dtype, n, columns, s.dx);
    if (call.g_teacher) row.dy = row_target(call.g_teacher, call.teacher_dtype, n, columns, s.dy);
    logits_gradient(row, columns);
    write_narrow(row.dx, columns, call.student_dtype, call.g_student, n);
    if (row.dy) write_narrow(row.dy, columns, call.teacher_dtype, call.g_teacher, n);
  }
}

template <class T> void given_forward(const State<T>& state, int rank, int64_t begin, int64_t end) {
  const Scratch<T> s = state.scratch(rank);
  for (int64_t n = begin; n < end; ++n) {
    Softmax<T> sx{state.call.student_scale, 0, 0};
    double total;
    const T* x = state.student(n, s);
    state.loss()[n] = T(given_loss<T>(x, state.teacher(n, s), state.call.columns, sx, total, nullptr));
    const T stats[3] = {sx.top, T(sx.log_sum), T(total)};
    for (int k = 0; k < 3; ++k) state.stat(k)[n] = stats[k];
  }
}

template <class T> void given_backward(const State<T>& state, int rank, int64_t begin, int64_t end) {
  const SoftTargets& call = state.call;
  const Scratch<T> s = state.scratch(rank);
  for (int64_t n = begin; n < end; ++n) {
    const Softmax<T> sx = state.softmax(0, n, call.student_scale);
    T* dx = row_target(call.g_student, call.student_dtype, n, call.columns, s.dx);
    const T* x = state.student(n, s);
    given_gradient(x, state.teacher(n, s), sx, double(state.g_loss()[n]), double(state.stat(2)[n]),
                   call.columns, dx);
    write_narrow(dx, call.columns, call.student_dtype, call.g_student, n);
  }
}

// The student's rows are contiguous and of the accumulation type: the gradient takes their place.
template <class T> void given_in_place(const State<T>& state, int rank, int64_t begin, int64_t end) {
  const SoftTargets& call = state.call;
  const Scratch<T> s = state.scratch(rank);
  for (int64_t n = begin; n < end; ++n) {
    T* x = static_cast<T*>(call.g_student) + n * call.student.row_step;
    const T* t = state.teacher(n, s);
    Softmax<T> sx{call.student_scale, 0, 0};
    double total;
    state.loss()[n] = T(given_loss<T>(x, t, call.columns, sx, total, x));
    const double pull = double(state.g_loss()[n]) * call.student_scale;
    mix<T>(x, T(pull * total * std::exp(-sx.log_sum)), t, T(pull), call.columns, x);
  }
}

template <class T> using RankBody = void (*)(const State<T>&, int, int64_t, int64_t);

template <class T> int run(RankBody<T> rows, const SoftTargets& call) {
  const int ranks = choose_ranks(call);
  const Lease lease(size_t(ranks * Scratch<T>::bytes(call.columns)));
  if (!lease.get()) return 1;
  struct Context {
    State<T> state;
    RankBody<T> rows;
  } context{{call, lease.get(), ranks}, rows};
  const auto body = [](void* data, const Team& team) {
    const Context& job = *static_cast<const Context*>(data);
    const int64_t n = job.state.call.rows, c = job.state.call.columns;
    team.each([&](int rank) {
      job.rows(job.state, rank, n * rank / team.ranks, n * (rank + 1) / team.ranks);
    });
    if (!job.state.call.marginal) return;
    team.each([&](int rank) {
      merge_marginal(job.state, c * rank / team.ranks, c * (rank + 1) / team.ranks);
    });
  };
  fastssl::run_team(ranks, body, &context);
  return 0;
}

template <class T> int run_pass(int pass, const SoftTargets& call) {
  static constexpr RankBody<T> kPasses[] = {logits_forward<T>, logits_backward<T>, given_forward<T>,
                                            given_backward<T>, given_in_place<T>};
  return run<T>(kPasses[pass], call);
}

int run_any(int pass, const SoftTargets& call) {
  const bool wide =
      call.student_dtype == fastssl::kFloat64 || call.teacher_dtype == fastssl::kFloat64;
  return wide ? run_pass<double>(pass, call) : run_pass<float>(pass, call);
}

#define FASTSSL_JOIN_(a, b) a##b
#define FASTSSL_JOIN(a, b) FASTSSL_JOIN_(a, b)

}  // namespace

fastssl::SoftTargetsKernel fastssl::FASTSSL_JOIN(soft_targets_, FASTSSL_ISA)() { return run_any; }
