#include "core/basis.h"

#include <string>

#include "core/shape.h"

namespace convbasis {

template <class T>
StripLayout head_layout(const BasisView<T>& basis, index_t batch, index_t head) {
  StripLayout layout{basis.kernels.shape[3], basis.num_columns, {}};
  for (index_t r = 0; r < basis.num_bases(batch, head); ++r) {
    const index_t start = basis.starts(batch, head, r);
    if (start >= basis.num_columns) break;
    layout.starts.push_back(start);
  }
  return layout;
}

template <class T>
void require_basis(const char* function, const BasisView<T>& basis) {
  const auto [batch, heads, k, n] = basis.kernels.shape;
  require_shape(function, "starts", basis.starts.shape, {batch, heads, k}, "to match kernels");
  require_shape(function, "num_bases", basis.num_bases.shape, {batch, heads}, "to match kernels");
  require(n <= 1 || basis.kernels.empty() || basis.kernels.strides[3] == 1, function,
          "kernels has stride " + std::to_string(basis.kernels.strides[3]) +
              " along lags; expected a contiguous last axis");
  require(basis.num_columns >= 0 && basis.num_columns <= n, function,
          "num_columns is " + std::to_string(basis.num_columns) + "; expected 0 to " +
              std::to_string(n));
  for (index_t b = 0; b < batch; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      const index_t count = basis.num_bases(b, h);
      require(count >= 0 && count <= k, function,
              "num_bases holds " + std::to_string(count) + "; expected 0 to " + std::to_string(k));
      for (index_t r = 0; r < count; ++r) {
        const index_t start = basis.starts(b, h, r);
        const index_t least = r > 0 ? basis.starts(b, h, r - 1) + 1 : 0;
        require(start >= least && start < n, function,
                "starts holds " + std::to_string(start) + " at strip " + std::to_string(r) +
                    "; expected increasing starts below " + std::to_string(n));
      }
    }
  }
}

template <class T>
void require_operands(const char* name, const BasisView<T>& lower, const BasisView<T>* upper,
                      const View<const T, 4>& value) {
  require_basis(name, lower);
  const auto [batch, heads, k, n] = lower.kernels.shape;
  if (upper != nullptr) {
    require_basis(name, *upper);
    require_shape(name, "upper.kernels", upper->kernels.shape,
                  {batch, heads, upper->kernels.shape[2], n}, "to match lower.kernels");
    require(lower.num_columns == n && upper->num_columns == n, name,
            "num_columns is " + std::to_string(lower.num_columns) + " and " +
                std::to_string(upper->num_columns) + "; expected n = " + std::to_string(n) +
                " of both without a causal mask");
  }
  require_groups(name, heads, value.shape[1]);
  require_shape(name, "value", value.shape,
                {batch, value.shape[1], lower.num_columns, value.shape[3]}, "to match the basis");
}

template StripLayout head_layout(const BasisView<float>&, index_t, index_t);
template StripLayout head_layout(const BasisView<double>&, index_t, index_t);
template void require_basis(const char*, const BasisView<float>&);
template void require_basis(const char*, const BasisView<double>&);
template void require_operands(const char*, const BasisView<float>&, const BasisView<float>*,
                               const View<const float, 4>&);
template void require_operands(const char*, const BasisView<double>&, const BasisView<double>*,
                               const View<const double, 4>&);

}  // namespace convbasis
