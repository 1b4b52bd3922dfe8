#include <algorithm>

#include "core/shape.h"
#include "cuda/attention_gradient.h"
#include "cuda/heads_backward.h"

namespace convbasis::cuda {

template <class E>
void conv_attention_backward(const BasisView<Compute<E>>& lower, const BasisView<Compute<E>>* upper,
                             View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                             View<const E, 4> grad_output, View<E, 4> grad_query,
                             View<E, 4> grad_key, View<E, 4> grad_value, double scale,
                             Gradient gradient, View<index_t, 2> rows_exact,
                             std::span<const index_t> heads, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "conv_attention_backward";
  const View<const T, 4> value_shape{nullptr, value.shape, value.strides};
  require_operands<T>(kName, lower, upper, value_shape);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const auto& strips = lower.kernels.shape;
  require_shape(kName, "query", query.shape, {strips[0], strips[1], strips[3], head_dim},
                "to match the basis");
  require_shape(kName, "key", key.shape, {batch, value.shape[1], lower.num_columns, head_dim},
                "to match query and value");
  require_shape(kName, "grad_output", grad_output.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  if (rows_exact.data != nullptr)
    require_shape(kName, "rows_exact", rows_exact.shape, {batch, query_heads},
                  "to match the basis");
  const HeadList list(kName, heads, batch * query_heads);
  if (batch * query_heads * n == 0) return;
  require_narrow(kName, batch * query_heads,
                 upper != nullptr ? std::max(strips[2], upper->kernels.shape[2]) : strips[2], n);

  const DeviceGuard guard(stream.device);
  const Triangles<T> logits = triangles_of(lower, upper, heads, stream);
  std::vector<Schedule> far;
  for (const Strips<T>& triangle : logits)
    if (gradient == Gradient::attention)
      far.push_back(far_schedule(triangle.layouts, head_dim, value.shape[3],
                                 static_cast<index_t>(sizeof(T)), GpuModel()));
  const auto of = [&](const auto& view) { return array_of(view, query_heads); };
  HeadsBackward<T>(logits,
                   {of(query), of(key), of(value), of(grad_output), of(grad_query), of(grad_key),
                    of(grad_value)},
                   scale, stream)
      .run(gradient, far, rows_exact);
}

#define CONVBASIS_INSTANTIATE(E)                                                                \
  template void conv_attention_backward(                                                        \
      const BasisView<Compute<E>>&, const BasisView<Compute<E>>*, View<const E, 4>,             \
      View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>, View<E, 4>, View<E, 4>, \
      double, Gradient, View<index_t, 2>, std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
