#pragma once

#include "cuda/tensor_cores.h"

namespace convbasis::cuda {

// 16-bit numbers on their way from callers' arrays to tensor cores, by way of shared memory.

/// Eight neighbouring channels of a row.
struct alignas(16) Eight {
  std::uint16_t of[8];
};

/// A caller's array of 16-bit elements, read eight channels at a time; what is outside is 0.
struct Halves {
  explicit Halves(const Array<float>& a) : array(a), whole(a.strides[3] == 1) {
    const auto odd = [](auto number) { return number % 8 != 0; };
    if (odd(a.channels) || odd(reinterpret_cast<std::uintptr_t>(a.data) / 2)) whole = false;
    for (int axis = 0; axis < 3; ++axis)
      if (odd(a.strides[axis])) whole = false;
  }
  [[nodiscard]] CONVBASIS_DEVICE Eight load(index_t head, index_t row, index_t channel) const {
    Eight eight = {};
    if (row >= array.rows || channel >= array.channels) return eight;
    const auto* data = static_cast<const std::uint16_t*>(array.data) + array.at(head, row, channel);
    if (whole) return *reinterpret_cast<const Eight*>(data);
    CONVBASIS_UNROLL
    for (int i = 0; i < 8; ++i)
      if (channel + i < array.channels) eight.of[i] = data[i * array.strides[3]];
    return eight;
  }

  Array<float> array;
  bool whole;  // eight elements are 16 bytes as they lie
};

[[nodiscard]] CONVBASIS_DEVICE std::uint32_t pair_at(const std::uint16_t* halves) {
  return *reinterpret_cast<const std::uint32_t*>(halves);
}

/// The lane's part of a left operand whose rows lie `Stride` numbers apart.
template <int Stride>
[[nodiscard]] CONVBASIS_DEVICE LeftTile left_tile(const std::uint16_t* halves, int t) {
  const std::uint16_t* at = halves + lane_row(t) * Stride + lane_column(t);
  return {{pair_at(at), pair_at(at + 8 * Stride), pair_at(at + 8), pair_at(at + 8 * Stride + 8)}};
}

/// That of a right operand whose columns lie `Stride` numbers apart.
template <int Stride>
[[nodiscard]] CONVBASIS_DEVICE RightTile right_tile(const std::uint16_t* halves, int t) {
  const std::uint16_t* at = halves + lane_row(t) * Stride + lane_column(t);
  return {{pair_at(at), pair_at(at + 8)}};
}

}  // namespace convbasis::cuda
