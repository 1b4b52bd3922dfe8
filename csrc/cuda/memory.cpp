#include "convbasis/error.h"
#include "cuda/runtime.h"

namespace convbasis::cuda {

std::shared_ptr<void> make_memory(const Stream& stream, std::size_t bytes) {
  const auto give_back = [stream](void* memory) {
    try {
      const DeviceGuard guard(stream.device);
      release(stream, memory);
    } catch (const BackendError&) {  // at the end of a process CUDA may be gone before its owner
    }
  };
  const DeviceGuard guard(stream.device);
  return {allocate(stream, bytes), give_back};
}

void clear(const Stream& stream, void* memory, std::size_t bytes) {
  const DeviceGuard guard(stream.device);
  fill_zero(stream, memory, bytes);
}

void wait(const Stream& stream) {
  const DeviceGuard guard(stream.device);
  synchronize(stream);
}

}  // namespace convbasis::cuda
