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
  for (const StripLayout& layout : strips.layouts) {
    most = std::max(most, layout.count());
    strips.table.rows = layout.rows;
    strips.table.columns = std::max(strips.table.columns, layout.columns);
  }
  std::vector<std::int32_t> numbers;
  for (const StripLayout& layout : strips.layouts)
    for (index_t r = 0; r <= most; ++r)
      numbers.push_back(
          static_cast<std::int32_t>(r < layout.count() ? layout.begin(r) : layout.columns));
  for (const StripLayout& layout : strips.layouts)
    numbers.push_back(
        layout.columns < strips.table.columns ? -1 : static_cast<std::int32_t>(layout.count()));
  strips.memory = upload(stream, std::span<const std::int32_t>(numbers));
  strips.table.starts = strips.memory.data();
  strips.table.counts = strips.memory.data() + all * (most + 1);
  strips.table.heads = static_cast<std::int32_t>(heads);
  strips.table.most = static_cast<std::int32_t>(most);
  return strips;
}

template <class T>
Strips<T> strips_of_basis(const BasisView<T>& basis, std::span<const index_t> heads,
                          const Stream& stream) {
  const auto [batch, of_batch, most, rows] = basis.kernels.shape;
  std::vector<StripLayout> layouts(static_cast<std::size_t>(batch * of_batch), {rows, 0, {}});
  const auto fill = [&](index_t flat) {
    layouts[static_cast<std::size_t>(flat)] = head_layout(basis, flat / of_batch, flat % of_batch);
  };
  for (const index_t flat : heads) fill(flat);
  for (index_t flat = 0; heads.empty() && flat < batch * of_batch; ++flat) fill(flat);
  Strips<T> strips = strips_of_layouts<T>(std::move(layouts), of_batch, most, stream);
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
  template Strips<T> strips_of_basis(const BasisView<T>&, std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
