#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/launch.h"

namespace convbasis::cuda {

/// What the elements of a caller's array are. A branch on it is the same for all threads, which
/// costs less than kernels for each type.
enum class Element { same, float16, bfloat16 };

template <class E>
constexpr Element element_of = Element::same;
template <>
inline constexpr Element element_of<Float16> = Element::float16;
template <>
inline constexpr Element element_of<BFloat16> = Element::bfloat16;

CONVBASIS_DEVICE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
CONVBASIS_DEVICE float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

CONVBASIS_DEVICE float from_bfloat16(std::uint16_t half) {
  return float_of(static_cast<std::uint32_t>(half) << 16);
}
CONVBASIS_DEVICE std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);  // to even
}

CONVBASIS_DEVICE float from_float16(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16, rest = half & 0x7fffU;
  if (rest >= 0x7c00U) return float_of(sign | 0x7f800000U | (rest & 0x3ffU) << 13);
  // The exponent's bias is corrected by a product, which brings subnormal numbers too.
  const float magnitude = float_of(rest << 13) * 0x1p112f;
  return float_of(sign | bits_of(magnitude));
}
CONVBASIS_DEVICE std::uint16_t to_float16(float value) {
  const std::uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000U, rest = bits & 0x7fffffffU;
  std::uint32_t half;
  if (rest > 0x7f800000U) {
    half = 0x7e00U;
  } else if (rest >= 0x477ff000U) {  // 65,520 and more round to infinity
    half = 0x7c00U;
  } else if (rest < 0x38800000U) {  // subnormal: the sum rounds at the last bit of a half
    half = bits_of(float_of(rest) + 0.5F) - 0x3f000000U;
  } else {
    half = (rest - 0x38000000U + 0xfffU + (rest >> 13 & 1U)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

/// A caller's (batch, heads, rows, channels) array of any strides and element type, read and
/// written as T. `heads` flat heads: of query heads, group of them share one head of the array.
template <class T>
struct Array {
  void* data = nullptr;
  Element element = Element::same;
  index_t heads = 1, group = 1, rows = 0, channels = 0;
  index_t strides[4] = {};

  [[nodiscard]] CONVBASIS_DEVICE index_t at(index_t head, index_t row, index_t channel) const {
    const auto flat = static_cast<std::uint32_t>(head), count = static_cast<std::uint32_t>(heads);
    return flat / count * strides[0] +
           flat % count / static_cast<std::uint32_t>(group) * strides[1] + row * strides[2] +
           channel * strides[3];
  }
  [[nodiscard]] CONVBASIS_DEVICE T load(index_t head, index_t row, index_t channel) const {
    return read(at(head, row, channel));
  }
  /// Element number i from `data` on.
  [[nodiscard]] CONVBASIS_DEVICE T read(index_t i) const {
    if (element == Element::same) return static_cast<const T*>(data)[i];
    const std::uint16_t half = static_cast<const std::uint16_t*>(data)[i];
    return static_cast<T>(element == Element::float16 ? from_float16(half) : from_bfloat16(half));
  }
  CONVBASIS_DEVICE void store(index_t head, index_t row, index_t channel, T value) const {
    write(at(head, row, channel), value);
  }
  CONVBASIS_DEVICE void write(index_t i, T value) const {
    if (element == Element::same) {
      static_cast<T*>(data)[i] = value;
    } else {
      const auto single = static_cast<float>(value);
      static_cast<std::uint16_t*>(data)[i] =
          element == Element::float16 ? to_float16(single) : to_bfloat16(single);
    }
  }
};

/// An array as `heads` query heads see it; an array with fewer heads is shared by groups of them.
template <class E>
[[nodiscard]] Array<Compute<std::remove_const_t<E>>> array_of(const View<E, 4>& view,
                                                              index_t heads) {
  using Value = std::remove_const_t<E>;
  Array<Compute<Value>> array;
  array.data = const_cast<Value*>(view.data);
  array.element = element_of<Value>;
  array.heads = heads;
  array.group = view.shape[1] > 0 ? heads / view.shape[1] : 1;
  array.rows = view.shape[2];
  array.channels = view.shape[3];
  for (int axis = 0; axis < 4; ++axis)
    array.strides[axis] = view.strides[static_cast<std::size_t>(axis)];
  return array;
}

/// Row and channel of number `item` of a head: kernels for each number run over (heads, rows *
/// channels), so that no thread idles where channels are few.
struct Position {
  index_t row, channel;
};
[[nodiscard]] CONVBASIS_DEVICE Position position_of(index_t item, index_t channels) {
  const auto flat = static_cast<std::uint32_t>(item), width = static_cast<std::uint32_t>(channels);
  return {flat / width, flat % width};
}

/// Contiguous rows of T of `all` flat heads.
template <class T>
[[nodiscard]] Array<T> packed_array(T* data, index_t all, index_t rows, index_t channels) {
  return array_of(contiguous_view<T, 4>(data, {1, all, rows, channels}), all);
}

/// One number a row as an array of one channel; without data it stays empty.
template <class T>
[[nodiscard]] Array<T> column_of(const View<T, 3>& lse, index_t heads) {
  if (lse.data == nullptr) return {};
  return array_of(View<T, 4>{lse.data,
                             {lse.shape[0], lse.shape[1], lse.shape[2], 1},
                             {lse.strides[0], lse.strides[1], lse.strides[2], 1}},
                  heads);
}

}  // namespace convbasis::cuda
