// A team of threads from the OpenMP runtime that torch has loaded, or from the C++ library.
#pragma once
#include <atomic>
#include <cstdint>

namespace fastssl {

class Barrier {
 public:
  void wait(int size);

 private:
  std::atomic<int> waiting_{0};
  std::atomic<int> generation_{0};
};

// Work is cut for `ranks`, which the caller fixes, and carried by `size` threads, which the runtime
// grants (fewer inside another parallel region): the result depends on ranks alone.
struct Team {
  int ranks, id, size;
  Barrier* barrier;

  template <class F> void each(const F& body) const {
    for (int rank = id; rank < ranks; rank += size) body(rank);
    if (size > 1) barrier->wait(size);
  }
};

using TeamBody = void (*)(void* context, const Team& team);
void run_team(int ranks, TeamBody body, void* context);
void use_openmp(void* parallel, void* thread_num, void* num_threads);

}  // namespace fastssl
