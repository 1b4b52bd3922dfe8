#pragma once

#include <span>
#include <vector>

#include "core/basis.h"
#include "cuda/buffer.h"

namespace convbasis::cuda {

/// Strips of all heads as kernels see them. Heads are flat numbers, batch * heads + head.
template <class T>
struct StripTable {
  const T* kernels = nullptr;
  const std::int32_t* starts = nullptr;  ///< (all heads, most + 1), the last strip's end included
  const std::int32_t* counts = nullptr;  ///< (all heads); -1 for one that is left out
  std::int32_t heads = 1;                ///< of one batch
  std::int32_t most = 0;
  index_t rows = 0, columns = 0;
  index_t batch_stride = 0, head_stride = 0, strip_stride = 0;

  [[nodiscard]] CONVBASIS_DEVICE const T* kernel(int head, int strip) const {
    return kernels + head / heads * batch_stride + head % heads * head_stride +
           strip * strip_stride;
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t begin(int head, int strip) const {
    return starts[head * (most + 1) + strip];
  }
  [[nodiscard]] CONVBASIS_DEVICE index_t end(int head, int strip) const {
    return starts[head * (most + 1) + strip + 1];
  }
  /// Whether a head is one of those that a caller lists.
  [[nodiscard]] CONVBASIS_DEVICE bool is_listed(index_t head) const { return counts[head] >= 0; }
  /// How many lags a strip has: 0 at a place that a head has no strip for.
  [[nodiscard]] CONVBASIS_DEVICE index_t lags(int head, int strip) const {
    return strip < counts[head] ? rows - begin(head, strip) : 0;
  }
  /// The strip that a column lies in, -1 before the first and past the last one.
  [[nodiscard]] CONVBASIS_DEVICE int strip_of(int head, index_t column) const {
    const std::int32_t* mine = starts + head * (most + 1);
    int low = 0, high = counts[head];  // strips [0, low) begin at or before it, [high, ..) after
    while (low < high) {
      const int middle = (low + high) / 2;
      if (mine[middle] <= column) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return column < columns ? low - 1 : -1;
  }
};

/// Strips with what belongs to them: layouts on the host, which plans are made of, and tables on
/// the device.
template <class T>
struct Strips {
  std::vector<StripLayout> layouts;  ///< one a flat head
  StripTable<T> table;
  DeviceBuffer<std::int32_t> memory;
  DeviceBuffer<T> own_kernels;  ///< empty when a caller holds them
};

/// Puts the layouts into tables on the device, with room for `most` strips a head or as many as a
/// head has; kernels and their strides are left to the caller. A head without columns is left out
/// where others have some.
template <class T>
[[nodiscard]] Strips<T> strips_of_layouts(std::vector<StripLayout> layouts, index_t heads,
                                          index_t most, const Stream& stream);

/// Strips of a basis whose kernels are on the device, with room for all that it has room for. Only
/// the flat `heads` have any; empty = all.
template <class T>
[[nodiscard]] Strips<T> strips_of_basis(const BasisView<T>& basis, std::span<const index_t> heads,
                                        const Stream& stream);

/// Throws InvalidArgument when a basis is too large for tables of 32-bit numbers.
void require_narrow(const char* function, index_t heads, index_t most, index_t rows);

}  // namespace convbasis::cuda
