#pragma once

#include <string>

#include "convbasis/types.h"

namespace convbasis {

/// True when this build can compute on an NVIDIA GPU and one is usable in this process.
///
/// Always false in a build without CUDA. Never throws: a machine without a driver is an answer, not
/// an error. Everything in this library runs on the CPU whatever the answer is.
[[nodiscard]] bool cuda_available() noexcept;

namespace cuda {

/// Why cuda_available() is false, as a sentence that says what is missing; empty when it is true.
[[nodiscard]] std::string why_unavailable();

/// GPUs that this process may use; 0 when there is none, whatever the reason.
[[nodiscard]] int device_count() noexcept;

/// The device that an address belongs to. Throws BackendError when it is no memory of one.
[[nodiscard]] int device_of(const void* address);

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  index_t memory = 0;  ///< bytes
};

/// Throws BackendError when there is no such device, or no CUDA.
[[nodiscard]] DeviceInfo device_info(int device);

}  // namespace cuda
}  // namespace convbasis
