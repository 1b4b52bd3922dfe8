#pragma once

#include <cuda_runtime_api.h>

#include "cuda/runtime.h"

namespace convbasis::cuda {

/// Throws BackendError with CUDA's text unless the call succeeded.
inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw_backend(call, cudaGetErrorString(status));
}

[[nodiscard]] inline cudaStream_t native(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.stream);
}

}  // namespace convbasis::cuda

#define CONVBASIS_CHECK_CUDA(call) ::convbasis::cuda::check(call, #call)
