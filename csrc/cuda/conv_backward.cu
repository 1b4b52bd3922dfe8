#include "core/shape.h"
#include "cuda/attention_gradient.h"
#include "cuda/heads_backward.h"

namespace convbasis::cuda {

template <class E>
void conv_attention_backward(const BasisView<Compute<E>>& lower, View<const E, 4> query,
                             View<const E, 4> key, View<const E, 4> value,
                             View<const E, 4> grad_output, View<E, 4> grad_query,
                             View<E, 4> grad_key, View<E, 4> grad_value, double scale,
                             Gradient gradient, View<index_t, 2> rows_exact, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "conv_attention_backward";
  const View<const T, 4> value_shape{nullptr, value.shape, value.strides};
  require_operands<T>(kName, lower, nullptr, value_shape);
  const auto [batch, heads, n, head_dim] = query.shape;
  const auto& strips = lower.kernels.shape;
  require_shape(kName, "query", query.shape, {strips[0], strips[1], strips[3], head_dim},
                "to match the basis");
  require_shape(kName, "key", key.shape, {batch, value.shape[1], lower.num_columns, head_dim},
                "to match query and value");
  require_shape(kName, "grad_output", grad_output.shape, {batch, heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  if (rows_exact.data != nullptr)
    require_shape(kName, "rows_exact", rows_exact.shape, {batch, heads}, "to match the basis");
  if (batch * heads * n == 0) return;
  require_narrow(kName, batch * heads, strips[2], n);

  const DeviceGuard guard(stream.device);
  const Strips<T> logits = strips_of_basis(lower, stream);
  Schedule far;
  if (gradient == Gradient::attention)
    far = far_schedule(logits.layouts, head_dim, value.shape[3], static_cast<index_t>(sizeof(T)),
                       GpuModel());
  HeadsBackward<T>(logits,
                   {array_of(query, heads), array_of(key, heads), array_of(value, heads),
                    array_of(grad_output, heads), array_of(grad_query, heads),
                    array_of(grad_key, heads), array_of(grad_value, heads)},
                   scale, stream)
      .run(gradient, far, rows_exact);
}

#define CONVBASIS_INSTANTIATE(E)                                                              \
  template void conv_attention_backward(const BasisView<Compute<E>>&, View<const E, 4>,       \
                                        View<const E, 4>, View<const E, 4>, View<const E, 4>, \
                                        View<E, 4>, View<E, 4>, View<E, 4>, double, Gradient, \
                                        View<index_t, 2>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
