#include <string>

#include "convbasis/error.h"
#include "cuda/check.h"
#include "cuda/runtime.h"

namespace convbasis::cuda {

void throw_backend(const char* call, const char* text) {
  const std::string whole(call);
  throw BackendError("[cuda] " + whole.substr(0, whole.find('(')) + ": " + text);
}

DeviceGuard::DeviceGuard(int device) {
  CONVBASIS_CHECK_CUDA(cudaGetDevice(&before_));
  if (before_ != device) CONVBASIS_CHECK_CUDA(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() { (void)cudaSetDevice(before_); }

void* allocate(const Stream& stream, std::size_t bytes) {
  void* memory = nullptr;
  CONVBASIS_CHECK_CUDA(cudaMallocAsync(&memory, bytes, native(stream)));
  return memory;
}

void release(const Stream& stream, void* memory) noexcept {
  (void)cudaFreeAsync(memory, native(stream));
}

void copy(const Stream& stream, void* to, const void* from, std::size_t bytes) {
  CONVBASIS_CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)));
}

void fill_zero(const Stream& stream, void* memory, std::size_t bytes) {
  CONVBASIS_CHECK_CUDA(cudaMemsetAsync(memory, 0, bytes, native(stream)));
}

void synchronize(const Stream& stream) {
  CONVBASIS_CHECK_CUDA(cudaStreamSynchronize(native(stream)));
}

}  // namespace convbasis::cuda
