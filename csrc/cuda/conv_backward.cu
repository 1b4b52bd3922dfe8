#include "core/shape.h"
#include "cuda/kernel_gradient.h"
#include "cuda/spoiled_gradient.h"
#include "cuda/start_gradient.h"
#include "cuda/toeplitz.h"

namespace convbasis::cuda {
namespace {

/// Adds what the heads of a group give to the gradient that they share, in their order.
template <class T>
struct AddValueGradients {
  Array<T> from, to;  // to: as query heads see it
  const HeadUnits* units;
  CONVBASIS_DEVICE void operator()(index_t item, index_t c) const {
    const index_t first = item / to.rows * to.group, row = item % to.rows;
    double total = 0;
    for (index_t head = first; head < first + to.group; ++head)
      total += static_cast<double>(from.load(head, row, c)) / units[head].grad;
    const auto before = static_cast<double>(to.load(first, row, c));
    to.store(first, row, c, static_cast<T>(before + total));
  }
};

/// The caller's arrays as query heads see them.
template <class T>
struct BackwardArrays {
  Array<T> query, key, value, grad_output, grad_query, grad_key, grad_value;
};

template <class T>
void differentiate(const Strips<T>& logits, const BackwardArrays<T>& arrays, double scale,
                   View<index_t, 2> rows_exact, const Stream& stream) {
  const GpuModel model;
  const auto all = static_cast<index_t>(logits.layouts.size());
  const index_t rows = logits.table.rows, columns = logits.table.columns;
  const index_t channels = arrays.value.channels,
                key_heads = arrays.value.heads / arrays.value.group;
  DeviceBuffer<T> output(stream, all * rows * channels);
  const Array<T> mean = packed_array(output.data(), all, rows, channels);
  const HeadsForward<T> forward = attend_heads(logits, arrays.value, mean, {}, true, stream);
  if (rows_exact.data != nullptr) count_spoiled(forward.spoiled.data(), rows, rows_exact, stream);
  const Shares<T> shares = divide_by_sums(forward, arrays.value, arrays.grad_output, mean, stream);
  output = {};

  const Array<T> grads = packed_array(shares.shares.data(), all, rows, channels);
  const Array<T> values =
      array_of(contiguous_view<T, 4>(shares.value.data(),
                                     {all / arrays.value.heads, key_heads, columns, channels}),
               arrays.value.heads);
  const SpoiledRows list = list_spoiled(forward.spoiled.data(), all, rows, stream);
  const SpoiledGradient<T> spoiled{logits.table,
                                   list.rows.data(),
                                   list.counts.data(),
                                   forward.lse.data(),
                                   shares.delta.data(),
                                   shares.units.data(),
                                   values,
                                   arrays.grad_output};
  {
    const DeviceBuffer<T> memory(stream, all * columns * channels);
    const Array<T> sums = packed_array(memory.data(), all, columns, channels);
    multiply_strips(forward.weights.strips, forward.schedule, true, grads, sums, model.workspace,
                    stream);
    add_spoiled_values(spoiled, sums, stream);
    launch(stream, all / arrays.value.group * columns, channels,
           AddValueGradients<T>{sums, arrays.grad_value, shares.units.data()});
  }
  const DeviceBuffer<T> of_kernels =
      differentiate_kernels(logits, forward, shares, values, grads, model.workspace, stream);
  add_spoiled_kernels(spoiled, all, of_kernels.data(), stream);
  add_kernel_gradients(logits, of_kernels.data(), shares.units.data(), scale, arrays.query,
                       arrays.key, arrays.grad_query, arrays.grad_key, stream);
}

}  // namespace

template <class E>
void conv_attention_backward(const BasisView<Compute<E>>& lower, View<const E, 4> query,
                             View<const E, 4> key, View<const E, 4> value,
                             View<const E, 4> grad_output, View<E, 4> grad_query,
                             View<E, 4> grad_key, View<E, 4> grad_value, double scale,
                             Gradient gradient, View<index_t, 2> rows_exact, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "conv_attention_backward";
  require(gradient == Gradient::basis, kName,
          "gradient is Gradient::attention; expected Gradient::basis on a GPU");
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
  differentiate<T>(strips_of_basis(lower, stream),
                   {array_of(query, heads), array_of(key, heads), array_of(value, heads),
                    array_of(grad_output, heads), array_of(grad_query, heads),
                    array_of(grad_key, heads), array_of(grad_value, heads)},
                   scale, rows_exact, stream);
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
