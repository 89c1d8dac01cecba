// The sigmoid loss of all pairs with its gradients in one pass, compiled once per instruction set
// (setup.py gives FASTSSL_ISA). Keys are cut among the ranks as in contrast.cpp; a tile of logits
// is made once and its weights are multiplied with both sides while they are in the cache, so that
// nothing of the size of the pairs is ever kept.
#include "sigmoid_pairs.h"

#include "carver.h"
#include "pool.h"
#include "sigmoid_tile.h"
#include "threads.h"

namespace {

using fastssl::Lease;
using fastssl::SigmoidPairs;
using fastssl::Team;

constexpr int kSums = 3;  // of a query: its loss, by the bias, by the scale

template <class T> struct SigmoidState : ContrastState<T> {
  const SigmoidPairs& call;
  T* dq;         // by rank, the layout of z.row_panels; null unless asked
  T* g;          // padded to whole panels; null for ones
  T* scratch;
  double* sums;  // by rank, [kSums][z.rows]

  SigmoidState(const SigmoidPairs& call, const fastssl::ContrastProblem& problem,
               const UnitRows<T>& z, int ranks)
      : ContrastState<T>(problem, z, ranks), call(call) {}
  ContrastScratch<T> scratch_of(int rank) const {
    return ContrastScratch<T>(scratch + rank * ContrastScratch<T>::elements(this->z.columns),
                              this->z.columns);
  }
  T* dq_of(int rank) const { return dq ? dq + rank * this->z.row_panel_elements() : nullptr; }
  double* sums_of(int rank) const { return sums + rank * kSums * this->z.rows; }
};

template <class T> void prepare(const SigmoidState<T>& state, int rank) {
  const int64_t rows = state.z.rows;
  pack_queries(state.problem, state.z, rank, state.ranks, state.scratch_of(rank).raw);
  std::memset(state.sums_of(rank), 0, size_t(kSums * rows) * sizeof(double));
  if (state.dq)
    std::memset(state.dq_of(rank), 0, size_t(state.z.row_panel_elements()) * sizeof(T));
  if (!state.g) return;
  const T* given = static_cast<const T*>(state.call.g);
  for (int64_t q = rows * rank / state.ranks; q < rows * (rank + 1) / state.ranks; ++q)
    state.g[q] = q < state.problem.queries ? given[q] : T(0);
}

// All queries against the keys [begin, end); then the gradient of these keys is known.
template <class T>
void sigmoid_keys(const SigmoidState<T>& state, int rank, int64_t begin, int64_t end) {
  const SigmoidPairs& call = state.call;
  const ContrastScratch<T> scratch = state.scratch_of(rank);
  const QuerySums<T> sums{scratch.column_sum, scratch.column_top, scratch.row_sum};
  T *key_grad = call.dk ? scratch.key_grad : nullptr, *dq = state.dq_of(rank);
  T* weights = dq || key_grad ? scratch.weights : nullptr;
  double* totals = state.sums_of(rank);
  const int64_t rows = state.z.rows;
  pack_keys(state.problem, begin, end, scratch.keys, scratch.raw);
  if (key_grad) std::memset(key_grad, 0, size_t(state.z.panels() * kKeyStep<T>) * sizeof(T));
  state.query_tiles(begin, end, [&](const Tile& tile) {
    sigmoid_tile(state, tile, call.diagonal, T(call.bias), state.g, sums, scratch, weights);
    for (int64_t c = 0; c < tile.j1 - tile.j0; ++c) {
      totals[tile.j0 + c] += double(sums.loss[c]);
      totals[rows + tile.j0 + c] += double(sums.bias[c]);
      totals[2 * rows + tile.j0 + c] += double(sums.scale[c]);
    }
    if (weights) multiply_pairs(state.z, tile, scratch, dq, key_grad);
  });
  double* buffer = reinterpret_cast<double*>(scratch.raw + state.z.columns);
  for (int64_t r = 0; key_grad && r < end - begin; ++r)
    write_scaled(key_grad + r * kPanel<T>, kKeyStep<T>, call.width, call.scale, call.dk_dtype,
                 buffer, call.dk, begin + r);
}

// Queries [begin, end): the ranks' partial sums in their order.
template <class T>
void finish(const SigmoidState<T>& state, int64_t begin, int64_t end, double* buffer) {
  const SigmoidPairs& call = state.call;
  void* const outputs[kSums] = {call.rows, call.by_bias, call.by_scale};
  for (int64_t q = begin; q < end; ++q) {
    for (int k = 0; k < kSums; ++k) {
      double total = 0;
      for (int rank = 0; rank < state.ranks; ++rank)
        total += state.sums_of(rank)[k * state.z.rows + q];
      if (outputs[k]) static_cast<T*>(outputs[k])[q] = T(total);
    }
    if (!state.dq) continue;
    for (int64_t d = 0; d < call.width; ++d) {
      const int64_t at = d / kPanel<T> * state.z.panel_step + q * kPanel<T> + d % kPanel<T>;
      double total = 0;
      for (int rank = 0; rank < state.ranks; ++rank) total += double(state.dq_of(rank)[at]);
      buffer[d] = total * call.scale;
    }
    write_row(buffer, call.width, call.dq_dtype, call.dq, q);
  }
}

template <class T> void body(void* context, const Team& team) {
  const auto& state = *static_cast<const SigmoidState<T>*>(context);
  team.each([&](int rank) { prepare(state, rank); });
  team.each([&](int rank) {
    state.key_tiles(rank, [&](int64_t begin, int64_t end) {
      sigmoid_keys(state, rank, begin, end);
    });
  });
  team.each([&](int rank) {
    const int64_t n = state.problem.queries;
    finish(state, n * rank / state.ranks, n * (rank + 1) / state.ranks,
           reinterpret_cast<double*>(state.scratch_of(rank).raw));
  });
}

template <class T> int compute(const SigmoidPairs& call) {
  const fastssl::ContrastProblem problem = {
      call.q,       call.k,       call.queries,      call.keys,    call.width,
      call.q_dtype, call.k_dtype, fastssl::kKeepAll, call.threads, call.wide,
      0,            call.scale,   __builtin_inf(),   nullptr,      nullptr,
      nullptr,      nullptr};
  auto z = UnitRows<T>::shape(call.queries, call.width);
  const int ranks = ranks_for(problem, z);
  const int64_t partial = call.dq ? ranks * z.row_panel_elements() : 0;
  const int64_t row_panels = call.dk ? z.row_panel_elements() : 0;
  const int64_t scratch = ranks * ContrastScratch<T>::elements(z.columns);
  const Lease lease(size_t(Carver::bytes<T>(z.rows * z.columns) + Carver::bytes<T>(partial) +
                           Carver::bytes<T>(row_panels) + Carver::bytes<T>(scratch) +
                           Carver::bytes<T>(z.rows) +
                           Carver::bytes<double>(ranks * kSums * z.rows)));
  if (!lease.get()) return 1;
  Carver carver{lease.get()};
  z.column_panels = carver.take<T>(z.rows * z.columns);
  z.row_panels = call.dk ? carver.take<T>(row_panels) : nullptr;
  SigmoidState<T> state(call, problem, z, ranks);
  state.dq = call.dq ? carver.take<T>(partial) : nullptr;
  state.scratch = carver.take<T>(scratch);
  state.g = call.g ? carver.take<T>(z.rows) : nullptr;
  state.sums = carver.take<double>(ranks * kSums * z.rows);
  fastssl::run_team(ranks, body<T>, &state);
  return 0;
}

int compute_any(const SigmoidPairs& call) {
  return call.wide ? compute<double>(call) : compute<float>(call);
}

#define FASTSSL_JOIN_(a, b) a##b
#define FASTSSL_JOIN(a, b) FASTSSL_JOIN_(a, b)

}  // namespace

fastssl::SigmoidPairsKernel fastssl::FASTSSL_JOIN(sigmoid_pairs_, FASTSSL_ISA)() {
  return compute_any;
}
