#include <limits>

#include "core/shape.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

template <class T>
Strips<T> strips_of_layouts(std::vector<StripLayout> layouts, index_t heads, index_t most,
                            const Stream& stream) {
  Strips<T> strips;
  strips.layouts = std::move(layouts);
  const auto all = static_cast<index_t>(strips.layouts.size());
  for (const StripLayout& layout : strips.layouts) most = std::max(most, layout.count());
  std::vector<std::int32_t> numbers;
  for (const StripLayout& layout : strips.layouts)
    for (index_t r = 0; r <= most; ++r)
      numbers.push_back(
          static_cast<std::int32_t>(r < layout.count() ? layout.begin(r) : layout.columns));
  for (const StripLayout& layout : strips.layouts)
    numbers.push_back(static_cast<std::int32_t>(layout.count()));
  strips.memory = upload(stream, std::span<const std::int32_t>(numbers));
  strips.table.starts = strips.memory.data();
  strips.table.counts = strips.memory.data() + all * (most + 1);
  strips.table.heads = static_cast<std::int32_t>(heads);
  strips.table.most = static_cast<std::int32_t>(most);
  if (all > 0) {
    strips.table.rows = strips.layouts.front().rows;
    strips.table.columns = strips.layouts.front().columns;
  }
  return strips;
}

template <class T>
Strips<T> strips_of_basis(const BasisView<T>& basis, const Stream& stream) {
  const auto [batch, heads, most, rows] = basis.kernels.shape;
  std::vector<StripLayout> layouts;
  for (index_t b = 0; b < batch; ++b)
    for (index_t h = 0; h < heads; ++h) layouts.push_back(head_layout(basis, b, h));
  Strips<T> strips = strips_of_layouts<T>(std::move(layouts), heads, most, stream);
  strips.table.kernels = basis.kernels.data;
  strips.table.batch_stride = basis.kernels.strides[0];
  strips.table.head_stride = basis.kernels.strides[1];
  strips.table.strip_stride = basis.kernels.strides[2];
  return strips;
}

void require_narrow(const char* function, index_t heads, index_t most, index_t rows) {
  constexpr index_t kMost = std::numeric_limits<std::int32_t>::max() / 4;
  require(rows <= kMost && heads * (most + 2) <= kMost, function,
          "kernels has " + std::to_string(rows) + " lags and " + std::to_string(most) +
              " strips in " + std::to_string(heads) + " heads; expected numbers below " +
              std::to_string(kMost));
}

#define CONVBASIS_INSTANTIATE(T)                                                                   \
  template Strips<T> strips_of_layouts(std::vector<StripLayout>, index_t, index_t, const Stream&); \
  template Strips<T> strips_of_basis(const BasisView<T>&, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
