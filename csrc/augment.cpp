// Views of images on the CPU, compiled once per instruction set (setup.py gives FASTSSL_ISA). A
// thread renders one view of one sample at a time in planes that stay in its cache; whichever
// thread takes a view, the same numbers come out.
#include "augment.h"

#include <atomic>

#include "augment_backward.h"
#include "augment_plan.h"
#include "augment_steps.h"
#include "augment_store.h"
#include "pool.h"
#include "threads.h"

namespace {

using fastssl::Lease;
using fastssl::Team;

constexpr int kMostRanks = 64;
constexpr double kPixelsPerRank = 2e4;  // below which one more thread does not pay

void render(const AugmentCall& call, const Needs& needs, int64_t view, int64_t sample, Scratch& s) {
  const int64_t size = call.size, pixels = size * size;
  const auto nothing = [](int64_t, int64_t) {};
  Plan plan = plan_of(call, view, sample, false);
  set_crop(call, needs, plan, &s.crop);
  Planes x = s.planes[0];
  run_crop(s.crop, *plan.image, call.image_dtype, x);
  if (plan.clamps) apply_line(chunk_of(x, 0), pixels, 1.0f, 0.0f);
  if (plan.runs(fastssl::kAffine)) {
    run_affine(affine_of(plan.values + fastssl::kAngle, call.affine_nearest != 0), size, x, s.planes[1]);
    x = s.planes[1];
  }
  int step = run_to_contrast(plan.colour, x, pixels);
  if (plan.runs(fastssl::kBlur)) {
    sweep(plan.colour, step, plan.colour.count, x, pixels, nothing);
    step = plan.colour.count;
    const Gauss g = gauss(plan.values[fastssl::kSigma], blur_half(call), s.blur_weight, nullptr);
    if (g.half > 0)
      for (int c = 0; c < 3; ++c) blur_plane(x[c], size, g, s.blur);
  }
  int tone = 0;
  if (plan.runs(fastssl::kEqualize | fastssl::kErase)) {
    sweep(plan.colour, step, plan.colour.count, x, pixels, nothing);
    sweep(plan.tone, 0, plan.tone.count, x, pixels, nothing);
    step = plan.colour.count;
    tone = plan.tone.count;
    if (plan.runs(fastssl::kEqualize))
      for (int c = 0; c < 3; ++c) equalize(x[c], pixels);
    if (plan.runs(fastssl::kErase)) {
      float colour[3];
      for (int c = 0; c < 3; ++c) colour[c] = float(plan.values[fastssl::kEraseRed + c]);
      fill_rectangle(x, size, plan.erased, colour, nullptr);
    }
  }
  const Normal normal = normal_of(call);
  const Frame frame = frame_of(call, call.out, view, sample);
  sweep(plan.colour, step, plan.colour.count, x, pixels, [&](int64_t at, int64_t count) {
    for (int k = tone; k < plan.tone.count; ++k) apply(plan.tone.op[k], chunk_of(x, at), count);
    store_chunk(x, at, count, normal, frame);
  });
}

void render_sample(const AugmentCall& call, const Needs& needs, int64_t task, Scratch& s) {
  render(call, needs, task / call.samples, task % call.samples, s);
}

// One sample's views, in their order, so that its image's gradient is summed in that order.
void back_sample(const AugmentCall& call, const Needs& needs, int64_t task, Scratch& s) {
  if (!call.g_images) return back_view(call, needs, task / call.samples, task % call.samples, s);
  for (int64_t view = 0; view < call.views; ++view) back_view(call, needs, view, task, s);
}

using Task = void (*)(const AugmentCall&, const Needs&, int64_t, Scratch&);

struct Job {
  const AugmentCall& call;
  const Needs& needs;
  Task task;
  int64_t tasks;
  bool whole;
  char* memory;
  int64_t bytes;
  std::atomic<int64_t> next;
};

void work(void* context, const Team& team) {
  Job& job = *static_cast<Job*>(context);
  Scratch scratch = {};
  scratch.cut(job.call, job.needs, job.whole ? kPlaneSets : kForwardSets, job.whole, job.memory + team.id * job.bytes);
  for (;;) {
    const int64_t task = job.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.tasks) return;
    job.task(job.call, job.needs, task, scratch);
  }
}

int run(const AugmentCall& call, Task task, int64_t tasks, bool whole) {
  if (tasks == 0) return 0;
  const Needs needs(call, whole);
  const double useful = 1.0 + double(call.views * call.samples * call.size * call.size) / kPixelsPerRank;
  int64_t ranks = call.threads < kMostRanks ? call.threads : kMostRanks;
  if (double(ranks) > useful) ranks = int64_t(useful);
  if (ranks > tasks) ranks = tasks;
  if (ranks < 1) ranks = 1;
  Scratch measure = {};
  const int64_t bytes = round_up(measure.cut(call, needs, whole ? kPlaneSets : kForwardSets, whole, nullptr), 4096);
  const Lease lease{size_t(ranks * bytes)};
  if (!lease.get()) return 1;
  Job job{call, needs, task, tasks, whole, lease.get(), bytes, {0}};
  fastssl::run_team(int(ranks), work, &job);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(lease.get(), size_t(ranks * bytes));  // the pool hands it on
#endif
  return 0;
}

int forward(const AugmentCall& call) {
  return run(call, render_sample, call.views * call.samples, false);
}

int backward(const AugmentCall& call) {
  return run(call, back_sample, call.g_images ? call.samples : call.views * call.samples, true);
}

#define FASTSSL_JOIN_(a, b) a##b
#define FASTSSL_JOIN(a, b) FASTSSL_JOIN_(a, b)

}  // namespace

const fastssl::AugmentKernels* fastssl::FASTSSL_JOIN(augment_, FASTSSL_ISA)() {
  static const AugmentKernels kernels{forward, backward};
  return &kernels;
}
