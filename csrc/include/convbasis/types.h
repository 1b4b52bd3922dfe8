#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

/// Conventions of every function of this library, stated once.
///
/// - Arrays are `(batch, heads, seq, dim)`; key and value may have fewer heads (`kv_heads` divides
///   `heads`, query head h uses key head `h / (heads / kv_heads)`).
/// - Strides count elements, may be negative, and may be 0 for inputs.
/// - Causal means top-left aligned: query i sees keys 0..i.
/// - An output must not overlap an input. Nothing is written when an argument is wrong.
/// - Results do not depend on the number of threads, bit for bit.
/// - Nothing is read from the environment.
namespace convbasis {

using index_t = std::int64_t;

/// Non-owning strided array of rank N.
template <class T, int N>
struct View {
  T* data = nullptr;
  std::array<index_t, N> shape{};
  std::array<index_t, N> strides{};

  [[nodiscard]] index_t size() const noexcept {
    index_t product = 1;
    for (index_t extent : shape) product *= extent;
    return product;
  }
  [[nodiscard]] bool empty() const noexcept { return data == nullptr || size() == 0; }

  template <class... I>
  [[nodiscard]] T& operator()(I... index) const noexcept {
    static_assert(sizeof...(I) == N);
    index_t offset = 0;
    int axis = 0;
    ((offset += index * strides[static_cast<std::size_t>(axis++)]), ...);
    return data[offset];
  }
  operator View<const T, N>() const noexcept { return {data, shape, strides}; }
};

/// View of a C-contiguous array.
template <class T, int N>
[[nodiscard]] View<T, N> contiguous_view(T* data, const std::array<index_t, N>& shape) noexcept {
  View<T, N> view{data, shape, {}};
  index_t stride = 1;
  for (std::size_t axis = N; axis-- > 0;) {
    view.strides[axis] = stride;
    stride *= shape[axis];
  }
  return view;
}

/// Elements of half precision as they lie in memory; computed in float.
struct Float16 {
  std::uint16_t bits;  ///< IEEE binary16
};
struct BFloat16 {
  std::uint16_t bits;  ///< the upper half of a float
};

/// Asked about every 50 ms, on the calling thread only, during long work.
class Interrupt {
 public:
  virtual ~Interrupt() = default;
  /// True to stop: the call throws Interrupted as soon as running tiles end.
  [[nodiscard]] virtual bool requested() = 0;
};

/// Where and how to run.
struct Exec {
  int threads = 0;                 ///< CPU threads; 0 = all cores this process may use
  Interrupt* interrupt = nullptr;  ///< not owned; null = cannot be stopped
};

}  // namespace convbasis
