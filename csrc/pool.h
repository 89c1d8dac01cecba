// Large buffers that are handed out again instead of being returned to the system.
#pragma once
#include <cstddef>

namespace fastssl {

// 64-byte aligned memory of unspecified content, or nullptr. Thread-safe.
void* acquire(size_t bytes);
void release(void* memory);

// Bytes held free at the moment, and bytes handed out.
void pool_usage(size_t* free_bytes, size_t* used_bytes);

// A buffer for the length of a scope.
class Lease {
 public:
  explicit Lease(size_t bytes);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  char* get() const { return memory_; }

 private:
  char* memory_;
};

}  // namespace fastssl
