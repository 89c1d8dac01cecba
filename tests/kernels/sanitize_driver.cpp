// Random ragged calls of the C interface, for a build with sanitizers (test_sanitize.py).
//
// Every array is its own heap block of exactly the size that the interface asks for, so that one
// element too far is seen. `driver canary NAME` makes a call that must be stopped. The calls of
// augment are made in sanitize_augment.cpp.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "ntxent.h"

extern "C" {
const char* fastssl_isa(int index);
int fastssl_select_isa(const char* name);
int fastssl_ntxent_forward(const fastssl::NtxentForward*, const fastssl::ViewMemory*);
int fastssl_ntxent_backward(const fastssl::NtxentBackward*, const fastssl::ViewMemory*);
}

bool augment_call_is_sound(bool hostile, int64_t short_by);

namespace {

std::mt19937_64 random_bits(7);

int64_t between(int64_t low, int64_t high) {
  return low + int64_t(random_bits() % uint64_t(high - low + 1));
}

int item_size(int dtype) {
  return dtype == fastssl::kFloat64 ? 8 : dtype == fastssl::kFloat32 ? 4 : 2;
}

struct Array {
  std::unique_ptr<char[]> memory;
  explicit Array(int64_t bytes) : memory(new char[size_t(bytes)]) {
    std::memset(memory.get(), 0xff, size_t(bytes));  // NaN in every format
  }
  char* get() const { return memory.get(); }
};

void fill(char* out, int64_t count, int dtype) {
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < count; ++i) {
    const double value = normal(random_bits);
    const float narrow = float(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, 4);
    // The upper half of a float is a bfloat16; read as a float16 it is another finite number.
    const uint16_t half = uint16_t(dtype == fastssl::kBfloat16 ? bits >> 16 : bits >> 16 & 0xbbff);
    if (dtype == fastssl::kFloat64) std::memcpy(out + i * 8, &value, 8);
    else if (dtype == fastssl::kFloat32) std::memcpy(out + i * 4, &narrow, 4);
    else std::memcpy(out + i * 2, &half, 2);
  }
}

struct Call {
  int64_t views, samples, width;
  int dtype, reduction, threads;
  double temperature;
  bool keep, transposed;
  int64_t kept_numel;  // as kernels/ntxent/native.py asks for, or less
  int64_t short_by;    // bytes that a canary takes away from the gradient

  int64_t rows() const { return views * samples; }
  int64_t accumulated() const { return dtype == fastssl::kFloat64 ? 8 : 4; }
};

double first_number(const char* memory, int64_t size) {
  double wide;
  float narrow;
  if (size == 8) std::memcpy(&wide, memory, 8);
  else std::memcpy(&narrow, memory, 4);
  return size == 8 ? wide : double(narrow);
}

Call random_call() {
  const double temperatures[] = {0.1, 0.01, 0.025, 2.0, -0.3};
  Call call = {};
  call.views = between(2, 4);
  call.samples = between(0, 3) ? between(1, 40) : between(60, 260);
  call.width = between(1, 70);
  call.dtype = int(between(0, 3));
  call.reduction = int(between(0, 2));
  call.threads = int(between(1, 3));
  call.temperature = temperatures[between(0, 4)];
  call.keep = between(0, 3) > 0;
  call.transposed = between(0, 2) == 0;
  const int64_t rows = call.rows() + 32;
  const int64_t all = rows * (rows + 192) / 2 + 16;
  call.kept_numel = between(0, 1) ? all : between(16, all);
  return call;
}

// The loss, or NaN if a call was refused.
double run(const Call& call, const char* grad_override = nullptr) {
  const int64_t m = call.rows(), size = call.accumulated(), item = item_size(call.dtype);
  const int64_t losses = call.reduction == fastssl::kNone ? m : 1;
  std::vector<Array> memory;
  std::vector<fastssl::ViewMemory> views;
  for (int64_t v = 0; v < call.views; ++v) {
    memory.emplace_back(call.samples * call.width * item);
    fill(memory.back().get(), call.samples * call.width, call.dtype);
    const int64_t row = call.transposed ? 1 : call.width, column = call.transposed ? call.samples : 1;
    views.push_back({memory.back().get(), row, column});
  }
  const Array loss(losses * size), lse(m * size), rnorm(m * size), grad(losses * size);
  const Array kept(call.kept_numel * size), dtau(size);
  const Array dz(m * call.width * item - call.short_by);
  fastssl::NtxentProblem problem = {nullptr,         call.views,     call.samples,
                                    call.width,      call.dtype,     call.temperature,
                                    call.reduction,  call.threads};
  const fastssl::NtxentForward forward = {problem, loss.get(), lse.get(), rnorm.get(),
                                          call.keep ? kept.get() : nullptr,
                                          call.keep ? call.kept_numel : 0};
  if (fastssl_ntxent_forward(&forward, views.data())) return NAN;
  fill(grad.get(), losses, size == 8 ? fastssl::kFloat64 : fastssl::kFloat32);
  const fastssl::NtxentBackward backward = {problem,
                                            grad_override ? grad_override : grad.get(),
                                            lse.get(),
                                            forward.kept,
                                            forward.kept_numel,
                                            dz.get(),
                                            dtau.get()};
  if (fastssl_ntxent_backward(&backward, views.data())) return NAN;
  if (!std::isfinite(first_number(dtau.get(), size))) return NAN;
  return first_number(loss.get(), size);
}

// Headers that no forward pass of the call wrote: refused, not followed.
bool refuses_forged_headers() {
  for (const int64_t ranks : {int64_t(0), int64_t(-1), int64_t(127), int64_t(1) << 40}) {
    Array view(8 * 4 * 4), lse(16 * 4), grad(4), kept(64 * 4), dz(16 * 4 * 4), dtau(4);
    fill(view.get(), 32, fastssl::kFloat32);
    const int64_t header[3] = {ranks, 16, 16};
    std::memcpy(kept.get(), header, sizeof(header));
    const fastssl::ViewMemory views[2] = {{view.get(), 4, 1}, {view.get(), 4, 1}};
    const fastssl::NtxentProblem problem = {nullptr, 2, 8, 4, fastssl::kFloat32, 0.1, 0, 1};
    const fastssl::NtxentBackward call = {problem, grad.get(), lse.get(), kept.get(), 64,
                                          dz.get(), dtau.get()};
    if (fastssl_ntxent_backward(&call, views) != fastssl::kForeignKept) return false;
  }
  return true;
}

int canary(const char* name) {
  if (fastssl_select_isa(fastssl_isa(0))) return 1;
  Call call = random_call();
  call.dtype = fastssl::kFloat32;
  call.reduction = fastssl::kNone;
  if (!std::strcmp(name, "short-views")) return augment_call_is_sound(false, 1) ? 0 : 1;
  if (!std::strcmp(name, "short-output")) call.short_by = 1;
  if (!std::strcmp(name, "scalar-gradient")) {
    const Array grad(4);
    std::printf("%f\n", run(call, grad.get()));
    return 0;
  }
  if (!std::strcmp(name, "overflow")) {
    volatile int largest = 2147483647;
    std::printf("%d\n", largest + 1);
  }
  std::printf("%f\n", run(call));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && !std::strcmp(arguments[1], "canary")) return canary(arguments[2]);
  const int calls = count == 2 ? std::atoi(arguments[1]) : 100;
  for (int isa = 0; fastssl_isa(isa); ++isa) {
    if (fastssl_select_isa(fastssl_isa(isa))) return 1;
    for (int i = 0; i < calls; ++i) {
      const Call call = random_call();
      if (std::isfinite(run(call))) continue;
      std::printf("%s, call %d: no finite answer\n", fastssl_isa(isa), i);
      return 1;
    }
    if (!refuses_forged_headers()) return 1;
    for (int i = 0; i < calls; ++i) {
      if (augment_call_is_sound(i % 2 == 1, 0)) continue;
      std::printf("%s, augment call %d: no finite answer\n", fastssl_isa(isa), i);
      return 1;
    }
    std::printf("%s: %d calls\n", fastssl_isa(isa), calls);
  }
  return 0;
}
