#include "core/groups.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/head_backward.h"

namespace convbasis {

template <class T>
BackwardReport conv_attention_backward(const BasisView<T>& lower, const BasisView<T>* upper,
                                       View<const T, 4> query, View<const T, 4> key,
                                       View<const T, 4> value, View<const T, 4> grad_output,
                                       View<T, 4> grad_query, View<T, 4> grad_key,
                                       View<T, 4> grad_value, double scale, Gradient gradient,
                                       std::span<const index_t> heads, const Exec& exec) {
  constexpr const char* kName = "conv_attention_backward";
  require_operands(kName, lower, upper, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const index_t kv_heads = value.shape[1], keys = lower.num_columns;
  const auto& strips = lower.kernels.shape;
  require_shape(kName, "query", query.shape, {strips[0], strips[1], strips[3], head_dim},
                "to match the basis");
  require_shape(kName, "key", key.shape, {batch, kv_heads, keys, head_dim},
                "to match query and value");
  require_shape(kName, "grad_output", grad_output.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  const HeadList list(kName, heads, batch * query_heads);

  BackwardReport report;
  report.rows_exact.assign(static_cast<std::size_t>(batch * query_heads), 0);
  if (batch * query_heads * n == 0) return report;
  const std::vector<Group> groups = groups_of(list, batch, query_heads, kv_heads);
  std::vector<StageSeconds> seconds(groups.size());
  const CostModel model = cost_model<T>();
  const Exec fixed{resolve_threads(exec), exec.interrupt};
  for_each_head(fixed, static_cast<index_t>(groups.size()), [&](index_t i, const Exec& inside) {
    const auto& [b, g, listed] = groups[static_cast<std::size_t>(i)];
    for (const index_t h : listed) {
      const StripMatrix<T> lower_half = head_strips(lower, b, h);
      StripMatrix<T> upper_half;
      if (upper != nullptr) upper_half = head_strips(*upper, b, h);
      HeadBackward<T> head(lower_half, upper != nullptr ? &upper_half : nullptr,
                           head_view(query, b, h), head_view(key, b, g), head_view(value, b, g),
                           head_view(grad_output, b, h), scale, model, inside);
      head.run(gradient, head_view(grad_query, b, h), head_view(grad_key, b, g),
               head_view(grad_value, b, g));
      report.rows_exact[static_cast<std::size_t>(b * query_heads + h)] = head.rows_exact;
      add_share(seconds[static_cast<std::size_t>(i)], head.seconds, 1);
    }
  });
  for (const StageSeconds& part : seconds) add_share(report.seconds, part, 1);
  return report;
}

#define CONVBASIS_INSTANTIATE(T)                                                                \
  template BackwardReport conv_attention_backward(                                              \
      const BasisView<T>&, const BasisView<T>*, View<const T, 4>, View<const T, 4>,             \
      View<const T, 4>, View<const T, 4>, View<T, 4>, View<T, 4>, View<T, 4>, double, Gradient, \
      std::span<const index_t>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
