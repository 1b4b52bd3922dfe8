#include <algorithm>

#include "core/shape.h"
#include "cuda/heads_forward.h"

namespace convbasis::cuda {
template <class E>
void conv_attention(const BasisView<Compute<E>>& lower, const BasisView<Compute<E>>* upper,
                    View<const E, 4> value, View<E, 4> out, View<Compute<E>, 3> lse,
                    View<index_t, 2> rows_exact, std::span<const index_t> heads,
                    const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "conv_attention";
  const auto [batch, query_heads, most, n] = lower.kernels.shape;
  const View<const T, 4> value_shape{nullptr, value.shape, value.strides};
  require_operands<T>(kName, lower, upper, value_shape);
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match basis and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match the basis");
  if (rows_exact.data != nullptr)
    require_shape(kName, "rows_exact", rows_exact.shape, {batch, query_heads},
                  "to match the basis");
  const HeadList list(kName, heads, batch * query_heads);
  if (batch * query_heads * n == 0) return;
  require_narrow(kName, batch * query_heads,
                 upper != nullptr ? std::max(most, upper->kernels.shape[2]) : most, n);

  const DeviceGuard guard(stream.device);
  const Triangles<T> logits = triangles_of(lower, upper, heads, stream);
  const HeadsForward<T> forward =
      attend_heads(logits, array_of(value, query_heads), array_of(out, query_heads),
                   column_of(lse, query_heads), false, {}, stream);
  if (rows_exact.data != nullptr) count_spoiled(forward.spoiled.data(), n, rows_exact, stream);
}

#define CONVBASIS_INSTANTIATE(E)                                                           \
  template void conv_attention(const BasisView<Compute<E>>&, const BasisView<Compute<E>>*, \
                               View<const E, 4>, View<E, 4>, View<Compute<E>, 3>,          \
                               View<index_t, 2>, std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
