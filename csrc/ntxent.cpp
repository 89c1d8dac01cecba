// Fused NT-Xent on the CPU, compiled once per instruction set (setup.py gives FASTSSL_ISA).
// The similarity matrix of unit rows is symmetric: only tiles above its diagonal are computed, each
// exponential feeds a row and a column sum, and half of E is kept for the backward where it fits.
#include "carver.h"
#include "ntxent_backward.h"
#include "ntxent_forward.h"

namespace {

using fastssl::Lease;
using fastssl::Team;

constexpr double kWorkPerRank = 4e6;  // multiply-adds below which one more thread does not pay

// In front of the kept tiles: what their layout depends on.
struct KeptHeader {
  int64_t ranks, rows, panel;
};
static_assert(sizeof(KeptHeader) <= kKeptHeader * sizeof(float), "no room in front of the tiles");

int64_t most_ranks(int64_t panels) {
  const int64_t most = panels / 2 < kMaxRanks ? panels / 2 : kMaxRanks;
  return most < 1 ? 1 : most;
}

int choose_ranks(const fastssl::NtxentProblem& problem, int64_t panels) {
  const double m = double(problem.views * problem.samples);
  const double useful = 1.0 + m * m * double(problem.width) / kWorkPerRank;
  int64_t ranks = problem.threads;
  if (double(ranks) > useful) ranks = int64_t(useful);
  if (ranks > most_ranks(panels)) ranks = most_ranks(panels);
  return ranks < 1 ? 1 : int(ranks);
}

// The same size for both directions, so that the backward gets the forward's buffer again.
template <class T> int64_t workspace_bytes(const UnitRows<T>& z, int ranks) {
  return 2 * Carver::bytes<T>(z.row_panel_elements()) + Carver::bytes<T>(z.rows * z.columns) +
         4 * Carver::bytes<double>(z.rows) + 2 * Carver::bytes<T>(z.rows) +
         Carver::bytes<T>(ranks * Scratch<T>::elements(z.columns));
}

template <class T> Scratch<T> scratch_of(T* all, const UnitRows<T>& z, int rank) {
  return Scratch<T>(all + rank * Scratch<T>::elements(z.columns));
}

template <class T> void forward_tiles(const ForwardState<T>& state, int round, int rank, int64_t* at,
                                      const KeptRange& range) {
  T* kept = static_cast<T*>(state.call.kept);
  const Scratch<T> scratch = scratch_of(state.scratch, state.z, rank);
  state.schedule.tiles(round, rank, [&](const Tile& tile) {
    T* here = nullptr;
    if (kept && *at + tile.area() <= range.end) {
      here = kept + *at;
      *at += tile.area();
    }
    if (state.logits.bounded) bounded_tile(state, tile, scratch, here);
    else online_tile(state, tile, scratch, here);
  });
}

template <class T> void forward_body(void* context, const Team& team) {
  const auto& state = *static_cast<const ForwardState<T>*>(context);
  const Schedule& schedule = state.schedule;
  int64_t kept_at[kMaxRanks];
  KeptRange range[kMaxRanks];
  team.each([&](int rank) {
    pack_rows(state.call.problem, state.z, rank, team.ranks,
              scratch_of(state.scratch, state.z, rank).pack);
    const int64_t begin = schedule.group_edge(2 * rank), end = schedule.group_edge(2 * rank + 2);
    for (int64_t i = begin; i < end; ++i) {
      state.sum[i] = 0;
      state.peak[i] = -__builtin_inf();
    }
    range[rank] = kept_range(schedule, rank, state.call.kept_numel);
    kept_at[rank] = range[rank].begin;
  });
  for (int round = 0; round < schedule.rounds(); ++round)
    team.each([&](int rank) { forward_tiles(state, round, rank, &kept_at[rank], range[rank]); });
  if (state.stream) stream_fence();
  team.each([&](int rank) {
    const int64_t n = state.call.problem.samples;
    finish_samples(state, n * rank / team.ranks, n * (rank + 1) / team.ranks);
  });
  if (team.id == 0) finish_loss(state);
}

template <class T> int forward(const fastssl::NtxentForward& call) {
  const int64_t m = call.problem.views * call.problem.samples;
  auto z = UnitRows<T>::shape(m, call.problem.width);
  const int ranks = choose_ranks(call.problem, z.rows / kPanel<T>);
  const Lease lease(size_t(workspace_bytes(z, ranks)));
  if (!lease.get()) return fastssl::kNoMemory;
  Carver carver{lease.get()};
  z.row_panels = carver.take<T>(z.row_panel_elements());
  z.column_panels = carver.take<T>(z.rows * z.columns);
  z.inverse_norm = carver.take<double>(z.rows);
  ForwardState<T> state{call, z, Logits<T>(call.problem.temperature, m),
                        Schedule{ranks, z.rows, kPanel<T>}, nullptr, nullptr, nullptr, nullptr,
                        false};
  state.sum = carver.take<double>(z.rows);
  state.peak = carver.take<double>(z.rows);
  state.row_loss = carver.take<double>(z.rows);
  state.scratch = carver.take<T>(ranks * Scratch<T>::elements(z.columns));
  if (call.kept) {
    const KeptHeader header = {ranks, m, kPanel<T>};
    std::memcpy(call.kept, &header, sizeof(header));
    state.stream = call.kept_numel * int64_t(sizeof(T)) > (int64_t(24) << 20) &&
                   reinterpret_cast<uintptr_t>(call.kept) % 64 == 0;
  }
  fastssl::run_team(ranks, forward_body<T>, &state);
  return fastssl::kDone;
}

template <class T> void gradient_tiles(const BackwardState<T>& state, int round, int rank,
                                       int64_t* at, const KeptRange& range) {
  const Scratch<T> scratch = scratch_of(state.scratch, state.z, rank);
  state.schedule.tiles(round, rank, [&](const Tile& tile) {
    const T* here = nullptr;
    if (state.kept && *at + tile.area() <= range.end) {
      here = state.kept + *at;
      *at += tile.area();
    }
    gradient_tile(state, tile, scratch, here, state.kept + range.end);
  });
}

template <class T> void backward_body(void* context, const Team& team) {
  const auto& state = *static_cast<const BackwardState<T>*>(context);
  const Schedule& schedule = state.schedule;
  int64_t kept_at[kMaxRanks];
  KeptRange range[kMaxRanks];
  team.each([&](int rank) {
    pack_rows(state.call.problem, state.z, rank, team.ranks,
              scratch_of(state.scratch, state.z, rank).pack);
    const int64_t begin = schedule.group_edge(2 * rank), end = schedule.group_edge(2 * rank + 2);
    row_weights(state, begin, end);
    for (int64_t p = 0; p < state.z.panels(); ++p)
      std::memset(state.dz + p * state.z.panel_step + begin * kPanel<T>, 0,
                  size_t((end - begin) * kPanel<T>) * sizeof(T));
    range[rank] = kept_range(schedule, rank, state.call.kept_numel);
    kept_at[rank] = range[rank].begin;
  });
  for (int round = 0; round < schedule.rounds(); ++round)
    team.each([&](int rank) { gradient_tiles(state, round, rank, &kept_at[rank], range[rank]); });
  team.each([&](int rank) {
    double* row = reinterpret_cast<double*>(scratch_of(state.scratch, state.z, rank).pack);
    const auto& problem = state.call.problem;
    const int64_t n = problem.samples;
    for (int64_t v = 0; v < problem.views; ++v)
      for (int64_t s = n * rank / team.ranks; s < n * (rank + 1) / team.ranks; ++s)
        finish_row(state, v, s, row);
  });
  if (team.id == 0) finish_temperature(state);
}

template <class T> int backward(const fastssl::NtxentBackward& call) {
  const int64_t m = call.problem.views * call.problem.samples;
  auto z = UnitRows<T>::shape(m, call.problem.width);
  int ranks = choose_ranks(call.problem, z.rows / kPanel<T>);
  if (call.kept) {  // its tiles were laid out for the forward's number of ranks
    if (call.kept_numel < kKeptHeader) return fastssl::kForeignKept;
    KeptHeader header;
    std::memcpy(&header, call.kept, sizeof(header));
    const int64_t most = most_ranks(z.rows / kPanel<T>);
    if (header.rows != m || header.panel != kPanel<T> || header.ranks < 1 || header.ranks > most)
      return fastssl::kForeignKept;
    ranks = int(header.ranks);
  }
  const Lease lease(size_t(workspace_bytes(z, ranks)));
  if (!lease.get()) return fastssl::kNoMemory;
  Carver carver{lease.get()};
  z.row_panels = carver.take<T>(z.row_panel_elements());
  z.column_panels = carver.take<T>(z.rows * z.columns);
  z.inverse_norm = carver.take<double>(z.rows);
  BackwardState<T> state{call, z, Logits<T>(call.problem.temperature, m),
                         Schedule{ranks, z.rows, kPanel<T>}, nullptr, nullptr, nullptr, nullptr,
                         1.0, nullptr, const_cast<T*>(static_cast<const T*>(call.kept))};
  state.row_dot = carver.take<double>(z.rows);
  state.dz = carver.take<T>(z.row_panel_elements());
  state.weight = carver.take<T>(z.rows);
  state.lse = carver.take<T>(z.rows);
  state.scratch = carver.take<T>(ranks * Scratch<T>::elements(z.columns));
  state.grad_scale = largest_grad(state);
  const KeptRange first = kept_range(state.schedule, 0, call.kept_numel);
  if (call.kept && first.end - first.begin == state.schedule.elements(0))
    state.z.column_panels = nullptr;  // nothing to recompute
  fastssl::run_team(ranks, backward_body<T>, &state);
  return fastssl::kDone;
}

int forward_any(const fastssl::NtxentForward& call) {
  return call.problem.dtype == fastssl::kFloat64 ? forward<double>(call) : forward<float>(call);
}

int backward_any(const fastssl::NtxentBackward& call) {
  return call.problem.dtype == fastssl::kFloat64 ? backward<double>(call) : backward<float>(call);
}

constexpr fastssl::NtxentKernels kKernels = {forward_any, backward_any};

#define FASTSSL_JOIN_(a, b) a##b
#define FASTSSL_JOIN(a, b) FASTSSL_JOIN_(a, b)

}  // namespace

const fastssl::NtxentKernels* fastssl::FASTSSL_JOIN(ntxent_, FASTSSL_ISA)() { return &kKernels; }
