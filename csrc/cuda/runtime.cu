#include <cstdint>
#include <map>
#include <mutex>
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

namespace {

// What a pool keeps for the next call; the device's own pool gives all back at each wait, and
// asking for it again takes longer than the work of a small call. 1 GiB.
constexpr std::uint64_t kKeptBytes = std::uint64_t{1} << 30;

cudaMemPool_t make_pool(int device) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool = nullptr;
  CONVBASIS_CHECK_CUDA(cudaMemPoolCreate(&pool, &properties));
  std::uint64_t kept = kKeptBytes;
  CONVBASIS_CHECK_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept));
  return pool;
}

/// One pool a device, made at the first need and never destroyed: at the end of a process CUDA may
/// be gone before it.
cudaMemPool_t pool_of(int device) {
  static std::mutex& mutex = *new std::mutex;
  static auto& pools = *new std::map<int, cudaMemPool_t>;
  const std::lock_guard lock(mutex);
  cudaMemPool_t& pool = pools[device];
  if (pool == nullptr) pool = make_pool(device);
  return pool;
}

}  // namespace

void* allocate(const Stream& stream, std::size_t bytes) {
  void* memory = nullptr;
  CONVBASIS_CHECK_CUDA(
      cudaMallocFromPoolAsync(&memory, bytes, pool_of(stream.device), native(stream)));
  return memory;
}

void release(const Stream& stream, void* memory) noexcept {
  (void)cudaFreeAsync(memory, native(stream));
}

void order(const Stream& first, void* then) {
  if (first.stream == then) return;
  const DeviceGuard guard(first.device);
  cudaEvent_t event = nullptr;
  CONVBASIS_CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  const cudaError_t recorded = cudaEventRecord(event, native(first));
  const cudaError_t waits = cudaStreamWaitEvent(static_cast<cudaStream_t>(then), event, 0);
  CONVBASIS_CHECK_CUDA(cudaEventDestroy(event));  // once it has happened
  check(recorded, "cudaEventRecord");
  check(waits, "cudaStreamWaitEvent");
}

void copy(const Stream& stream, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  CONVBASIS_CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)));
}

void fill_zero(const Stream& stream, void* memory, std::size_t bytes) {
  if (bytes == 0) return;
  CONVBASIS_CHECK_CUDA(cudaMemsetAsync(memory, 0, bytes, native(stream)));
}

void synchronize(const Stream& stream) {
  CONVBASIS_CHECK_CUDA(cudaStreamSynchronize(native(stream)));
}

}  // namespace convbasis::cuda
