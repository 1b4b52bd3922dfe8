#include "cuda/runtime.h"

#include <cstring>
#include <new>
#include <string>

#include "convbasis/device.h"
#include "convbasis/error.h"

// A device that is the host: one "GPU", work is done when it is enqueued.

namespace convbasis {

bool cuda_available() noexcept { return true; }

namespace cuda {

std::string why_unavailable() { return ""; }
int device_count() noexcept { return 1; }
int device_of(const void*) { return 0; }
DeviceInfo device_info(int device) {
  if (device != 0) throw_backend("cudaGetDeviceProperties()", "invalid device ordinal");
  return {"emulated", 0, 0, 1, 0};
}

void throw_backend(const char* call, const char* text) {
  const std::string whole(call);
  throw BackendError("[cuda] " + whole.substr(0, whole.find('(')) + ": " + text);
}

DeviceGuard::DeviceGuard(int device) : before_(0) {
  if (device != 0) throw_backend("cudaSetDevice()", "invalid device ordinal");
}
DeviceGuard::~DeviceGuard() = default;

void* allocate(const Stream&, std::size_t bytes) {
  void* memory = ::operator new(bytes);
  std::memset(memory, 0xff, bytes);  // NaN for who reads what nothing wrote
  return memory;
}
void release(const Stream&, void* memory) noexcept { ::operator delete(memory); }
void order(const Stream&, void*) {}
void copy(const Stream&, void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);  // null pointers of nothing
}
void fill_zero(const Stream&, void* memory, std::size_t bytes) {
  if (bytes > 0) std::memset(memory, 0, bytes);
}
void synchronize(const Stream&) {}

}  // namespace cuda
}  // namespace convbasis
