#include "cpu/key_arrays.h"

#include "core/heads.h"
#include "core/shape.h"

namespace convbasis {

template <class T>
std::vector<std::unique_ptr<const KeyArrays<T>>> key_arrays(const View<const T, 4>& key,
                                                            const View<const T, 4>& value,
                                                            const Exec& exec) {
  const auto [batch, heads, n, head_dim] = key.shape;
  std::vector<std::unique_ptr<const KeyArrays<T>>> arrays(static_cast<std::size_t>(batch * heads));
  for_each_head(exec, batch * heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, heads, heads);
    arrays[static_cast<std::size_t>(flat)] = std::make_unique<const KeyArrays<T>>(
        head_view(key, b, h), head_view(value, b, h), std::span<const index_t>{}, inside);
  });
  return arrays;
}

#define CONVBASIS_INSTANTIATE(T)                                        \
  template std::vector<std::unique_ptr<const KeyArrays<T>>> key_arrays( \
      const View<const T, 4>&, const View<const T, 4>&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
