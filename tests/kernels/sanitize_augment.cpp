// Random and hostile calls of the augmentation entry points, for sanitize_driver.cpp. Each image,
// view and gradient is a heap block of exactly its size.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "augment.h"

extern "C" {
int fastssl_augment_forward(const fastssl::AugmentCall*);
int fastssl_augment_backward(const fastssl::AugmentCall*);
}

namespace {

using fastssl::AugmentCall;
using fastssl::AugmentImage;

std::mt19937_64 random_bits(11);

int64_t between(int64_t low, int64_t high) {
  return low + int64_t(random_bits() % uint64_t(high - low + 1));
}

double uniform(double low, double high) {
  return low + (high - low) * std::uniform_real_distribution<double>()(random_bits);
}

struct Block {
  std::unique_ptr<char[]> memory;
  explicit Block(int64_t bytes) : memory(new char[size_t(bytes)]) {
    std::memset(memory.get(), 0, size_t(bytes));
  }
  char* get() const { return memory.get(); }
};

// An image in one of three layouts, of exactly its pixels.
AugmentImage image_of(std::vector<Block>& blocks, int dtype, int64_t height, int64_t width, int64_t layout) {
  const int64_t count = 3 * height * width;
  blocks.emplace_back(count * (dtype == fastssl::kUint8 ? 1 : 4));
  char* data = blocks.back().get();
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t level = uint8_t(between(0, 255));
    const float value = float(level) / 255.0f;
    if (dtype == fastssl::kUint8) std::memcpy(data + i, &level, 1);
    else std::memcpy(data + 4 * i, &value, 4);
  }
  if (layout == 0) return {data, height * width, width, 1, height, width};
  if (layout == 1) return {data, 1, 3 * width, 3, height, width};
  return {data, height * width, 1, height, height, width};  // columns first
}

void fill_row(double* values, int32_t* codes, const AugmentImage& image, double size, bool hostile) {
  const double sound[fastssl::kAugmentValues] = {
      uniform(-2, double(image.width) / 2), uniform(-2, double(image.height) / 2),
      uniform(1, double(image.width)), uniform(1, double(image.height)),
      uniform(-90, 90), uniform(-3, 3), uniform(-3, 3), uniform(0.5, 2), uniform(-20, 20), uniform(-20, 20),
      uniform(0.2, 1.8), uniform(0.2, 1.8), uniform(0.2, 1.8), uniform(-0.5, 0.5),
      uniform(0.1, 4), uniform(0, 1),
      uniform(-2, size), uniform(-2, size), uniform(0, size), uniform(0, size), 0.1, 0.5, 0.9};
  std::memcpy(values, sound, sizeof(sound));
  codes[fastssl::kStages] = int32_t(between(0, 1023) & between(0, 1023));
  codes[fastssl::kJitterOrder] = int32_t(between(0, 23));
  codes[fastssl::kPosterizeBits] = int32_t(between(1, 8));
  if (!hostile) return;
  const double wild[] = {NAN, INFINITY, -INFINITY, 1e300, -1e300, 1e-300, 0, -7, 1e9, 0.999};
  for (int64_t k = between(1, 4); k > 0; --k)
    values[between(0, fastssl::kAugmentValues - 1)] = wild[between(0, 9)];
  codes[between(0, fastssl::kAugmentCodes - 1)] = int32_t(random_bits());
}

}  // namespace

// Whether a random call, forward and backward, answered; with finite numbers unless hostile.
bool augment_call_is_sound(bool hostile, int64_t short_by) {
  const int64_t views = between(1, 3), samples = between(1, 5), size = between(1, 40);
  const int dtype = between(0, 1) ? fastssl::kUint8 : fastssl::kFloat32;
  const bool half = between(0, 3) == 0, wants_images = dtype == fastssl::kFloat32 && between(0, 1);
  std::vector<Block> blocks;
  std::vector<AugmentImage> images, targets;
  std::vector<double> values(size_t(views * samples * fastssl::kAugmentValues));
  std::vector<int32_t> codes(size_t(views * samples * fastssl::kAugmentCodes));
  for (int64_t n = 0; n < samples; ++n) {
    const int64_t height = between(1, between(0, 5) ? 60 : 400), width = between(1, between(0, 5) ? 60 : 400);
    images.push_back(image_of(blocks, dtype, height, width, between(0, 2)));
    targets.push_back(image_of(blocks, fastssl::kFloat32, height, width, between(0, 2)));
  }
  for (int64_t i = 0; i < views * samples; ++i)
    fill_row(&values[size_t(i * fastssl::kAugmentValues)], &codes[size_t(i * fastssl::kAugmentCodes)],
             images[size_t(i % samples)], double(size), hostile);
  const int64_t numbers = views * samples * 3 * size * size;
  const Block out(numbers * (half ? 2 : 4) - short_by);
  const Block g_values(int64_t(values.size()) * 8);
  AugmentCall call = {};
  call.images = images.data(), call.values = values.data(), call.codes = codes.data();
  call.views = views, call.samples = samples, call.size = size;
  call.image_dtype = dtype, call.out_dtype = half ? fastssl::kBfloat16 : fastssl::kFloat32;
  call.bicubic = int(between(0, 1)), call.yiq = int(between(0, 1));
  call.blur_window = int(2 * between(0, 12) + 1);
  call.affine_nearest = int(between(0, 1)), call.channels_last = int(between(0, 1));
  call.threads = int(between(1, 3));
  for (int c = 0; c < 3; ++c) call.mean[c] = 0.5f, call.std[c] = 0.25f;
  call.out = out.get(), call.g_out = out.get();
  call.g_values = reinterpret_cast<double*>(g_values.get());
  call.g_images = wants_images ? targets.data() : nullptr;
  if (fastssl_augment_forward(&call) || fastssl_augment_backward(&call)) return false;
  for (size_t i = 0; i < values.size() && !hostile; ++i)
    if (!std::isfinite(call.g_values[i])) return false;
  return true;
}
