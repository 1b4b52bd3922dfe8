#pragma once

#include <utility>

#include "convbasis/types.h"
#include "core/scratch.h"

namespace convbasis {

/// Uninitialised scratch of one call, aligned for the widest vectors.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(index_t count) : count_(count) {
    if (count > 0) block_ = take_scratch(static_cast<std::size_t>(count) * sizeof(T));
  }
  ~Buffer() { give_scratch(block_); }
  Buffer(Buffer&& other) noexcept
      : block_(std::exchange(other.block_, {})), count_(std::exchange(other.count_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(count_, other.count_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] T* data() noexcept { return static_cast<T*>(block_.data); }
  [[nodiscard]] const T* data() const noexcept { return static_cast<const T*>(block_.data); }
  [[nodiscard]] index_t size() const noexcept { return count_; }
  T& operator[](index_t i) noexcept { return data()[i]; }
  const T& operator[](index_t i) const noexcept { return data()[i]; }

 private:
  ScratchBlock block_;
  index_t count_ = 0;
};

[[nodiscard]] constexpr index_t ceil_div(index_t a, index_t b) noexcept { return (a + b - 1) / b; }
[[nodiscard]] constexpr index_t round_up(index_t a, index_t b) noexcept {
  return ceil_div(a, b) * b;
}

}  // namespace convbasis
