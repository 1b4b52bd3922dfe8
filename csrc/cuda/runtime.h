#pragma once

#include <cstddef>

#include "convbasis/cuda.h"

namespace convbasis::cuda {

/// The calling thread's current device is `device` while this lives, then what it was before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

// What follows wants the stream's device to be current, works in the order of the stream, and waits
// for nothing, except synchronize.

/// Uninitialised device memory from the device's pool.
[[nodiscard]] void* allocate(const Stream& stream, std::size_t bytes);
void release(const Stream& stream, void* memory) noexcept;

/// Between any two memories. From or to pageable host memory CUDA may wait: for tests, and for
/// recover_starts, which waits for its result; tables go up by upload() of buffer.h.
void copy(const Stream& stream, void* to, const void* from, std::size_t bytes);
void fill_zero(const Stream& stream, void* memory, std::size_t bytes);
void synchronize(const Stream& stream);

/// A call of a library underneath failed: throws BackendError "[cuda] <call>: <text>".
[[noreturn]] void throw_backend(const char* call, const char* text);

}  // namespace convbasis::cuda
