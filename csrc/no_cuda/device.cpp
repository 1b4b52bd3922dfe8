#include "convbasis/device.h"

#include "convbasis/error.h"

namespace convbasis {

bool cuda_available() noexcept { return false; }

namespace cuda {

std::string why_unavailable() { return "this build has no CUDA: build with -DCONVBASIS_CUDA=ON"; }

int device_count() noexcept { return 0; }

int device_of(const void*) { throw BackendError("[device_of] " + why_unavailable()); }

DeviceInfo device_info(int) { throw BackendError("[device_info] " + why_unavailable()); }

}  // namespace cuda
}  // namespace convbasis
