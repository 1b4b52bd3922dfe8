#pragma once

#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "cuda/launch.h"

namespace convbasis::cuda {

/// Uninitialised device memory of one call, taken and given back in the order of its stream.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const Stream& stream, index_t count) : stream_(stream), count_(count) {
    if (count > 0)
      data_ = static_cast<T*>(allocate(stream, static_cast<std::size_t>(count) * sizeof(T)));
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) release(stream_, data_);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : stream_(other.stream_),
        data_(std::exchange(other.data_, nullptr)),
        count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  [[nodiscard]] T* data() const noexcept { return data_; }
  [[nodiscard]] index_t size() const noexcept { return count_; }

 private:
  Stream stream_;
  T* data_ = nullptr;
  index_t count_ = 0;
};

/// Words that travel to the device as the argument of a kernel, below CUDA's limit of 32,764 bytes.
struct UploadWords {
  static constexpr index_t kCount = 7680;
  std::uint32_t* to;
  std::uint32_t words[kCount];
  CONVBASIS_DEVICE void operator()(index_t, index_t i) const { to[i] = words[i]; }
};

/// A table of the host in device memory. Neither a wait nor pinned memory, and the host's copy is
/// not needed any more, also when the call is captured into a graph: a copy of pageable memory
/// would break one of these promises.
template <class T>
[[nodiscard]] DeviceBuffer<T> upload(const Stream& stream, std::span<const T> table) {
  static_assert(sizeof(T) % 4 == 0 && std::is_trivially_copyable_v<T>);
  DeviceBuffer<T> memory(stream, static_cast<index_t>(table.size()));
  const index_t total = static_cast<index_t>(table.size_bytes() / 4);
  UploadWords part;
  for (index_t first = 0; first < total; first += UploadWords::kCount) {
    const index_t count = std::min(UploadWords::kCount, total - first);
    part.to = reinterpret_cast<std::uint32_t*>(memory.data()) + first;
    std::memcpy(part.words, reinterpret_cast<const std::uint32_t*>(table.data()) + first,
                static_cast<std::size_t>(count) * 4);
    launch(stream, 1, count, part);
  }
  return memory;
}

}  // namespace convbasis::cuda
