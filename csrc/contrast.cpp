// Log-denominators of a similarity matrix that never exists whole, compiled once per instruction
// set (setup.py gives FASTSSL_ISA). The keys are cut among the ranks; a rank packs each tile of its
// keys once and takes all queries past it. What it adds up for the queries is its own until the
// ranks' parts are summed in their order, so the result depends on the number of ranks alone.
#include "carver.h"
#include "contrast_backward.h"
#include "contrast_forward.h"

namespace {

using fastssl::Lease;
using fastssl::Team;

// The part of the kept buffer that belongs to a rank: what it needs where all fits, else a share.
template <class T>
KeptRange kept_of(const ContrastState<T>& state, int rank, int64_t numel) {
  const int64_t room = numel > kKeptHeader ? numel - kKeptHeader : 0;
  const int64_t width = state.z.rows;
  if (state.problem.keys * width <= room)
    return {kKeptHeader + state.key_edge(rank) * width,
            kKeptHeader + state.key_edge(rank + 1) * width};
  const int64_t share = room / state.ranks / 16 * 16;
  return {kKeptHeader + share * rank, kKeptHeader + share * (rank + 1)};
}

template <class T> struct IdLanes {
  using Int = typename Simd<T>::Int;
  static int64_t bytes(int64_t rows) { return 2 * Carver::bytes<Int>(rows); }

  static Lanes<T> fill(const fastssl::ContrastProblem& problem, int64_t rows, Carver& carver) {
    Int *label = carver.take<Int>(rows), *row = carver.take<Int>(rows);
    for (int64_t q = 0; q < rows; ++q) {
      const bool real = q < problem.queries;
      label[q] = real && problem.q_label ? Int(problem.q_label[q]) : 0;
      row[q] = real && problem.q_row ? Int(problem.q_row[q]) : 0;
    }
    return {problem.keep != fastssl::kKeepAll ? label : nullptr, problem.q_row ? row : nullptr,
            problem.k_label, problem.k_row, problem.keep, problem.queries};
  }
};

template <class T> void forward_body(void* context, const Team& team) {
  const auto& state = *static_cast<const ContrastForwardState<T>*>(context);
  T* kept = static_cast<T*>(state.call->kept);
  team.each([&](int rank) {
    pack_queries(state.problem, state.z, rank, state.ranks, state.scratch_of(rank).raw);
    for (int64_t q = rank * state.z.rows; q < (rank + 1) * state.z.rows; ++q) {
      state.sum[q] = 0;
      state.peak[q] = -__builtin_inf();
      state.top[q] = T(-__builtin_inf());
    }
    if (state.mean)
      std::memset(state.mean_of(rank), 0, size_t(state.z.row_panel_elements()) * sizeof(T));
  });
  team.each([&](int rank) {
    const KeptRange range = kept_of(state, rank, state.call->kept_numel);
    const ContrastScratch<T> scratch = state.scratch_of(rank);
    int64_t at = range.begin;
    state.key_tiles(rank, [&](int64_t begin, int64_t end) {
      forward_keys(state, rank, begin, end, scratch, kept, &at, range.end);
    });
  });
  team.each([&](int rank) {
    const int64_t n = state.problem.queries;
    finish_queries(state, n * rank / state.ranks, n * (rank + 1) / state.ranks);
  });
}

template <class T> int forward(const fastssl::ContrastForward& call) {
  const auto& problem = call.problem;
  auto z = UnitRows<T>::shape(problem.queries, problem.width);
  const int ranks = ranks_for(problem, z);
  const int64_t partial = call.mean ? ranks * z.row_panel_elements() : 0;
  const int64_t scratch = ranks * ContrastScratch<T>::elements(z.columns);
  const Lease lease(size_t(Carver::bytes<T>(z.rows * z.columns) + Carver::bytes<T>(partial) +
                           Carver::bytes<T>(scratch) + Carver::bytes<T>(ranks * z.rows) +
                           2 * Carver::bytes<double>(ranks * z.rows) +
                           IdLanes<T>::bytes(z.rows)));
  if (!lease.get()) return 1;
  Carver carver{lease.get()};
  z.column_panels = carver.take<T>(z.rows * z.columns);
  ContrastForwardState<T> state(problem, z, ranks);
  state.call = &call;
  state.mean = call.mean ? carver.take<T>(partial) : nullptr;
  state.scratch = carver.take<T>(scratch);
  state.top = carver.take<T>(ranks * z.rows);
  state.sum = carver.take<double>(ranks * z.rows);
  state.peak = carver.take<double>(ranks * z.rows);
  state.lanes = IdLanes<T>::fill(problem, z.rows, carver);
  if (call.kept) {
    const int64_t header[2] = {ranks, problem.keys};
    std::memcpy(call.kept, header, sizeof(header));
  }
  fastssl::run_team(ranks, forward_body<T>, &state);
  return 0;
}

template <class T> void backward_body(void* context, const Team& team) {
  const auto& state = *static_cast<const ContrastBackwardState<T>*>(context);
  const auto& problem = state.problem;
  const auto& call = *state.call;
  team.each([&](int rank) {
    pack_queries(problem, state.z, rank, state.ranks, state.scratch_of(rank).raw);
    std::memset(state.dq_of(rank), 0, size_t(state.z.row_panel_elements()) * sizeof(T));
    const int64_t rows = state.z.rows, keys = problem.keys;
    side_weights<T>(state, call.g_rows, call.rows, rows * rank / state.ranks,
                    rows * (rank + 1) / state.ranks, problem.queries, state.weight, state.lse);
    if (state.k_weight)
      side_weights<T>(state, call.g_cols, call.cols, keys * rank / state.ranks,
                      keys * (rank + 1) / state.ranks, keys, state.k_weight, state.k_lse);
  });
  team.each([&](int rank) {
    const KeptRange range = kept_of(state, rank, call.kept_numel);
    const ContrastScratch<T> scratch = state.scratch_of(rank);
    double* buffer = reinterpret_cast<double*>(scratch.raw + state.z.columns);
    int64_t at = range.begin;
    state.key_tiles(rank, [&](int64_t begin, int64_t end) {
      backward_keys(state, rank, begin, end, scratch, static_cast<const T*>(call.kept), &at,
                    range.end, buffer);
    });
  });
  team.each([&](int rank) {
    const int64_t n = problem.queries;
    finish_gradients(state, rank, n * rank / state.ranks, n * (rank + 1) / state.ranks,
                     reinterpret_cast<double*>(state.scratch_of(rank).raw));
  });
}

template <class T> int backward(const fastssl::ContrastBackward& call) {
  const auto& problem = call.problem;
  auto z = UnitRows<T>::shape(problem.queries, problem.width);
  int ranks = ranks_for(problem, z);
  if (call.kept) {  // its tiles were laid out for the forward's number of ranks
    int64_t header[2];
    std::memcpy(header, call.kept, sizeof(header));
    if (header[0] < 1 || header[0] > kMaxRanks || header[1] != problem.keys) return 2;
    ranks = int(header[0]);
  }
  const int64_t keys = call.cols ? problem.keys : 0;
  const int64_t scratch = ranks * ContrastScratch<T>::elements(z.columns);
  const Lease lease(size_t(Carver::bytes<T>(z.rows * z.columns) +
                           Carver::bytes<T>(z.row_panel_elements()) +
                           Carver::bytes<T>(ranks * z.row_panel_elements()) +
                           Carver::bytes<T>(scratch) + 2 * Carver::bytes<T>(z.rows) +
                           2 * Carver::bytes<T>(keys) + Carver::bytes<double>(ranks) +
                           IdLanes<T>::bytes(z.rows)));
  if (!lease.get()) return 1;
  Carver carver{lease.get()};
  z.column_panels = carver.take<T>(z.rows * z.columns);
  z.row_panels = carver.take<T>(z.row_panel_elements());
  ContrastBackwardState<T> state(problem, z, ranks);
  state.call = &call;
  state.dq = carver.take<T>(ranks * z.row_panel_elements());
  state.scratch = carver.take<T>(scratch);
  state.weight = carver.take<T>(z.rows);
  state.lse = carver.take<T>(z.rows);
  state.k_weight = keys ? carver.take<T>(keys) : nullptr;
  state.k_lse = keys ? carver.take<T>(keys) : nullptr;
  state.dscale = carver.take<double>(ranks);
  state.lanes = IdLanes<T>::fill(problem, z.rows, carver);
  fastssl::run_team(ranks, backward_body<T>, &state);
  double total = 0;
  for (int rank = 0; rank < ranks; ++rank) total += state.dscale[rank];
  *static_cast<T*>(call.dscale) = T(total);
  return 0;
}

int forward_any(const fastssl::ContrastForward& call) {
  return call.problem.wide ? forward<double>(call) : forward<float>(call);
}

int backward_any(const fastssl::ContrastBackward& call) {
  return call.problem.wide ? backward<double>(call) : backward<float>(call);
}

constexpr fastssl::ContrastKernels kKernels = {forward_any, backward_any};

#define FASTSSL_JOIN_(a, b) a##b
#define FASTSSL_JOIN(a, b) FASTSSL_JOIN_(a, b)

}  // namespace

const fastssl::ContrastKernels* fastssl::FASTSSL_JOIN(contrast_, FASTSSL_ISA)() {
  return &kKernels;
}
