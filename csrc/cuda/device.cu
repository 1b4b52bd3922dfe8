#include "convbasis/device.h"
#include "cuda/check.h"
#include "cuda/library.h"

namespace convbasis {
namespace {

/// Asks the driver each time: nothing is kept, so nothing is initialised before it is asked for.
cudaError_t count_devices(int& count) {
  count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    count = 0;
    (void)cudaGetLastError();  // the answer of this question is no error of the next call
  }
  return status;
}

}  // namespace

bool cuda_available() noexcept { return cuda::why_unavailable().empty(); }

namespace cuda {

int device_count() noexcept {
  int count = 0;
  (void)count_devices(count);
  return count;
}

std::string why_unavailable() {
  int count = 0, driver = 0;
  const cudaError_t status = count_devices(count);
  if (count > 0) {
    const std::string missing = cufft().why_missing();
    return missing.empty() ? cublas().why_missing() : missing;
  }
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "no NVIDIA driver is installed here (libcuda.so.1 is not found)";
  if (status == cudaErrorNoDevice || status == cudaSuccess)
    return "the NVIDIA driver shows this process no GPU (CUDA_VISIBLE_DEVICES may hide it)";
  return std::string("the NVIDIA driver refuses: ") + cudaGetErrorString(status);
}

int device_of(const void* address) {
  cudaPointerAttributes attributes;
  CONVBASIS_CHECK_CUDA(cudaPointerGetAttributes(&attributes, address));
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
    throw_backend("cudaPointerGetAttributes", "the address is no memory of a device");
  return attributes.device;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties;
  CONVBASIS_CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          static_cast<index_t>(properties.totalGlobalMem)};
}

}  // namespace cuda
}  // namespace convbasis
