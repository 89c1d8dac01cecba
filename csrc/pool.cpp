// A fresh 134 MB buffer costs 33,000 page faults (20 to 30 ms, as much as a fifth of the loss at
// M = 8,192). So buffers are mapped on huge pages and kept, at most kMaxFree bytes of them, for the
// next call. Pages that nobody writes are never populated.
#include "pool.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace fastssl {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kSmallPage = size_t(4) << 10;
constexpr size_t kMaxFree = size_t(320) << 20;

struct Buffer {
  char* memory;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Buffer> free, used;
  size_t free_bytes = 0, used_bytes = 0;
};

// Never destroyed: tensors may give buffers back while the process is ending.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

size_t round_up(size_t bytes) {
  const size_t page = bytes > kHugePage / 2 ? kHugePage : kSmallPage;
  return (bytes + page - 1) / page * page;
}

char* map(size_t bytes) {
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* raw = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  if (!slack) return static_cast<char*>(raw);
  const uintptr_t start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > start) munmap(raw, aligned - start);
  if (start + slack > aligned)
    munmap(reinterpret_cast<void*>(aligned + bytes), start + slack - aligned);
#if defined(MADV_HUGEPAGE)
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
  return reinterpret_cast<char*>(aligned);
}

// Gives the oldest free buffers back to the system until at most `limit` bytes of them are left.
void trim(Pool& p, size_t limit) {
  while (p.free_bytes > limit) {
    munmap(p.free.front().memory, p.free.front().bytes);
    p.free_bytes -= p.free.front().bytes;
    p.free.erase(p.free.begin());
  }
}

// The smallest free buffer that fits without wasting more than half of itself.
char* take_free(Pool& p, size_t bytes) {
  size_t best = p.free.size();
  for (size_t i = 0; i < p.free.size(); ++i) {
    const size_t size = p.free[i].bytes;
    if (size < bytes || size > 2 * bytes) continue;
    if (best == p.free.size() || size < p.free[best].bytes) best = i;
  }
  if (best == p.free.size()) return nullptr;
  const Buffer buffer = p.free[best];
  p.free.erase(p.free.begin() + long(best));
  p.free_bytes -= buffer.bytes;
  p.used_bytes += buffer.bytes;
  p.used.push_back(buffer);
  return buffer.memory;
}

}  // namespace

void* acquire(size_t wanted) {
  const size_t bytes = round_up(wanted ? wanted : 1);
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  if (char* memory = take_free(p, bytes)) return memory;
  trim(p, bytes < kMaxFree ? kMaxFree - bytes : 0);
  char* memory = map(bytes);
  if (!memory) return nullptr;
  p.used.push_back({memory, bytes});
  p.used_bytes += bytes;
  return memory;
}

void release(void* memory) {
  if (!memory) return;
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  size_t i = p.used.size();
  while (i-- > 0 && p.used[i].memory != memory) {
  }
  const Buffer buffer = p.used[i];
  p.used.erase(p.used.begin() + long(i));
  p.used_bytes -= buffer.bytes;
  p.free.push_back(buffer);
  p.free_bytes += buffer.bytes;
  trim(p, kMaxFree);
}

Lease::Lease(size_t bytes) : memory_(static_cast<char*>(acquire(bytes))) {}
Lease::~Lease() { release(memory_); }

void pool_usage(size_t* free_bytes, size_t* used_bytes) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  *free_bytes = p.free_bytes;
  *used_bytes = p.used_bytes;
}

}  // namespace fastssl
