// The C interface, and the choice of the instruction set. Python calls it through ctypes
// (kernels/native.py, kernels/ntxent/native.py), which releases the GIL.
#include <atomic>
#include <cstring>

#include "augment.h"
#include "contrast.h"
#include "enqueue.h"
#include "ntxent.h"
#include "pool.h"
#include "soft_targets.h"
#include "threads.h"

#define FASTSSL_API extern "C" __attribute__((visibility("default")))

namespace {

struct Isa {
  const char* name;
  const fastssl::NtxentKernels* ntxent;
  const fastssl::ContrastKernels* contrast;
  fastssl::SoftTargetsKernel soft_targets;
  fastssl::EnqueueKernel enqueue;
  const fastssl::AugmentKernels* augment;
};

#define FASTSSL_SET(isa)                                                                     \
  Isa {                                                                                      \
    #isa, fastssl::ntxent_##isa(), fastssl::contrast_##isa(), fastssl::soft_targets_##isa(), \
        fastssl::enqueue_##isa(), fastssl::augment_##isa()                                   \
  }

// Best first; what the compiler could not build or the processor cannot run is not in it.
int available(Isa* out) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(FASTSSL_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    out[count++] = FASTSSL_SET(avx512);
#endif
#if defined(FASTSSL_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    out[count++] = FASTSSL_SET(avx2);
#endif
#endif
  out[count++] = FASTSSL_SET(baseline);
  return count;
}

std::atomic<const fastssl::NtxentKernels*> ntxent_kernels{nullptr};
std::atomic<const fastssl::ContrastKernels*> contrast_kernels{nullptr};
std::atomic<fastssl::SoftTargetsKernel> soft_targets_kernel{nullptr};
std::atomic<fastssl::EnqueueKernel> enqueue_kernel{nullptr};
std::atomic<const fastssl::AugmentKernels*> augment_kernels{nullptr};

}  // namespace

// The name of instruction set `index`, best first; null beyond the last.
FASTSSL_API const char* fastssl_isa(int index) {
  Isa isa[4];
  const int count = available(isa);
  return index >= 0 && index < count ? isa[index].name : nullptr;
}

// Must be called before anything is computed. Returns 0, or 1 for a name that is not available.
FASTSSL_API int fastssl_select_isa(const char* name) {
  Isa isa[4];
  const int count = available(isa);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(isa[i].name, name)) continue;
    ntxent_kernels.store(isa[i].ntxent);
    contrast_kernels.store(isa[i].contrast);
    soft_targets_kernel.store(isa[i].soft_targets);
    enqueue_kernel.store(isa[i].enqueue);
    augment_kernels.store(isa[i].augment);
    return 0;
  }
  return 1;
}

FASTSSL_API void fastssl_use_openmp(void* parallel, void* thread_num, void* num_threads) {
  fastssl::use_openmp(parallel, thread_num, num_threads);
}

FASTSSL_API void* fastssl_acquire(size_t bytes) { return fastssl::acquire(bytes); }
FASTSSL_API void fastssl_release(void* memory) { fastssl::release(memory); }
FASTSSL_API void fastssl_pool_usage(size_t* free_bytes, size_t* used_bytes) {
  fastssl::pool_usage(free_bytes, used_bytes);
}

// `view` of the problem is filled in here, so that a caller can hand over two flat pieces of bytes.
FASTSSL_API int fastssl_ntxent_forward(const fastssl::NtxentForward* call,
                                       const fastssl::ViewMemory* views) {
  fastssl::NtxentForward whole = *call;
  whole.problem.view = views;
  return ntxent_kernels.load()->forward(whole);
}

FASTSSL_API int fastssl_ntxent_backward(const fastssl::NtxentBackward* call,
                                        const fastssl::ViewMemory* views) {
  fastssl::NtxentBackward whole = *call;
  whole.problem.view = views;
  return ntxent_kernels.load()->backward(whole);
}

FASTSSL_API int fastssl_contrast_forward(const fastssl::ContrastForward* call) {
  return contrast_kernels.load()->forward(*call);
}

FASTSSL_API int fastssl_contrast_backward(const fastssl::ContrastBackward* call) {
  return contrast_kernels.load()->backward(*call);
}

FASTSSL_API int fastssl_soft_targets(int pass, const fastssl::SoftTargets* call) {
  return soft_targets_kernel.load()(pass, *call);
}

FASTSSL_API int fastssl_enqueue(const fastssl::Enqueue* call) {
  return enqueue_kernel.load()(*call);
}

FASTSSL_API int fastssl_augment_forward(const fastssl::AugmentCall* call) {
  return augment_kernels.load()->forward(*call);
}

FASTSSL_API int fastssl_augment_backward(const fastssl::AugmentCall* call) {
  return augment_kernels.load()->backward(*call);
}
