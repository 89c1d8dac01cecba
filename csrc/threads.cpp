// No OpenMP runtime is linked: a second one beside torch's would oversubscribe the machine and
// ignore torch.set_num_threads. The loader finds torch's and hands over its entry points.
#include "threads.h"

#include <sched.h>

#include <system_error>
#include <thread>
#include <vector>

namespace fastssl {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpNumber = int (*)();

GompParallel gomp_parallel = nullptr;
OmpNumber omp_get_thread_num = nullptr;
OmpNumber omp_get_num_threads = nullptr;

struct Job {
  int ranks;
  TeamBody body;
  void* context;
  Barrier* barrier;
};

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void openmp_entry(void* data) {
  Job& job = *static_cast<Job*>(data);
  const int size = omp_get_num_threads();
  job.body(job.context, Team{job.ranks, omp_get_thread_num(), size, job.barrier});
}

// The size is told only once every helper that the system grants exists.
void run_own_threads(const Job& job) {
  std::atomic<int> size{0};
  std::vector<std::thread> helpers;
  helpers.reserve(size_t(job.ranks));
  try {
    for (int id = 1; id < job.ranks; ++id) {
      helpers.emplace_back([&job, &size, id] {
        while (size.load(std::memory_order_acquire) == 0) sched_yield();
        job.body(job.context, Team{job.ranks, id, size.load(), job.barrier});
      });
    }
  } catch (const std::system_error&) {
  }
  const int granted = int(helpers.size()) + 1;
  size.store(granted, std::memory_order_release);
  job.body(job.context, Team{job.ranks, 0, granted, job.barrier});
  for (auto& helper : helpers) helper.join();
}

}  // namespace

// Spins while the partner is about to arrive, gives the core away when it is not.
void Barrier::wait(int size) {
  const int generation = generation_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int spin = 0; generation_.load(std::memory_order_acquire) == generation; ++spin) {
    if (spin < 20000) pause_briefly();
    else sched_yield();
  }
}

void use_openmp(void* parallel, void* thread_num, void* num_threads) {
  omp_get_thread_num = reinterpret_cast<OmpNumber>(thread_num);
  omp_get_num_threads = reinterpret_cast<OmpNumber>(num_threads);
  gomp_parallel = reinterpret_cast<GompParallel>(parallel);
}

void run_team(int ranks, TeamBody body, void* context) {
  if (ranks == 1) return body(context, Team{1, 0, 1, nullptr});
  Barrier barrier;
  Job job{ranks, body, context, &barrier};
  if (gomp_parallel) return gomp_parallel(openmp_entry, &job, unsigned(ranks), 0);
  run_own_threads(job);
}

}  // namespace fastssl
