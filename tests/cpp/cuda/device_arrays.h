#pragma once

// Arrays on the device of the tests, a GPU or the emulated one, and a dense reference.

#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "check.h"
#include "cuda/buffer.h"
#include "cuda/element.h"

namespace convbasis::cuda {

/// The default stream of device 0, which is current in the tests.
inline const Stream kStream{};

template <class T>
[[nodiscard]] DeviceBuffer<T> to_device(const std::vector<T>& host) {
  DeviceBuffer<T> memory(kStream, static_cast<index_t>(host.size()));
  if (!host.empty()) copy(kStream, memory.data(), host.data(), host.size() * sizeof(T));
  return memory;
}

template <class T>
[[nodiscard]] std::vector<T> to_host(const DeviceBuffer<T>& memory) {
  std::vector<T> host(static_cast<std::size_t>(memory.size()));
  if (!host.empty()) copy(kStream, host.data(), memory.data(), host.size() * sizeof(T));
  synchronize(kStream);
  return host;
}

template <class T>
[[nodiscard]] std::vector<T> normal_numbers(index_t count, unsigned seed, double spread = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, spread);
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(normal(random));
  return numbers;
}

/// Numbers as elements of a caller's array, and back.
template <class E>
[[nodiscard]] E element_from(double number) {
  const auto single = static_cast<float>(number);
  if constexpr (std::is_same_v<E, Float16>) return {to_float16(single)};
  if constexpr (std::is_same_v<E, BFloat16>) return {to_bfloat16(single)};
  if constexpr (std::is_floating_point_v<E>) return static_cast<E>(number);
}
template <class E>
[[nodiscard]] Compute<E> number_of(E element) {
  if constexpr (std::is_same_v<E, Float16>) return from_float16(element.bits);
  if constexpr (std::is_same_v<E, BFloat16>) return from_bfloat16(element.bits);
  if constexpr (std::is_floating_point_v<E>) return element;
}

/// Normal numbers as elements on the device, and what these are on the host.
template <class E>
struct RandomArray {
  RandomArray(index_t count, unsigned seed, double spread = 1) {
    std::vector<E> elements;
    for (const double number : normal_numbers<double>(count, seed, spread)) {
      elements.push_back(element_from<E>(number));
      numbers.push_back(number_of(elements.back()));
    }
    on_device = to_device(elements);
  }
  std::vector<Compute<E>> numbers;
  DeviceBuffer<E> on_device;
};

/// The layout of (batch, rows, heads, channels) in memory, seen as (batch, heads, rows, channels).
template <class T>
[[nodiscard]] View<T, 4> rows_first(T* data, const std::array<index_t, 4>& shape) {
  const auto [batch, heads, rows, channels] = shape;
  return {data, shape, {rows * heads * channels, channels, heads * channels, 1}};
}

/// Causal matrices of (batch, heads) heads with random kernels, on the host and on the device.
/// Strips of different heads begin at different columns.
template <class T>
struct RandomBasis {
  RandomBasis(index_t batch_, index_t heads_, index_t most, index_t rows_, index_t columns_,
              unsigned seed, double spread = 1)
      : batch(batch_), heads(heads_), k(std::min(most, rows_)), rows(rows_), columns(columns_) {
    std::mt19937_64 random(seed);
    for (index_t head = 0; head < batch * heads; ++head) {
      std::vector<index_t> all(static_cast<std::size_t>(rows));
      for (index_t j = 0; j < rows; ++j) all[static_cast<std::size_t>(j)] = j;
      if (head % 2 == 0) std::shuffle(all.begin() + 1, all.end(), random);  // begins at 0
      if (head % 2 == 1) std::shuffle(all.begin(), all.end(), random);
      const index_t count = head % 3 == 2 ? k / 2 : k;
      std::sort(all.begin(), all.begin() + count);
      std::fill(all.begin() + count, all.end(), rows);
      starts.insert(starts.end(), all.begin(), all.begin() + k);
      counts.push_back(count);
    }
    kernels = normal_numbers<T>(batch * heads * k * rows, seed + 1, spread);
    on_device = to_device(kernels);
  }
  [[nodiscard]] BasisView<T> view_of(const T* data) const {
    return {contiguous_view<const index_t, 3>(starts.data(), {batch, heads, k}),
            contiguous_view<const index_t, 2>(counts.data(), {batch, heads}),
            contiguous_view<const T, 4>(data, {batch, heads, k, rows}), columns};
  }
  [[nodiscard]] BasisView<T> host() const { return view_of(kernels.data()); }
  [[nodiscard]] BasisView<T> device() const { return view_of(on_device.data()); }

  index_t batch, heads, k, rows, columns;
  std::vector<index_t> starts, counts;
  std::vector<T> kernels;
  DeviceBuffer<T> on_device;
};

inline double larger(double worst, double error) {
  if (error <= worst) return worst;
  return std::isnan(error) ? INFINITY : error;
}

}  // namespace convbasis::cuda
