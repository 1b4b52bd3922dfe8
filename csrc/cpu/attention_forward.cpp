#include "convbasis/attention.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/head_forward.h"

namespace convbasis {
template <class T>
ForwardReport conv_attention(const BasisView<T>& lower, const BasisView<T>* upper,
                             View<const T, 4> value, View<T, 4> out, View<T, 3> lse,
                             std::span<const index_t> heads, const Exec& exec) {
  constexpr const char* kName = "conv_attention";
  require_operands(kName, lower, upper, value);
  const auto [batch, query_heads, k, n] = lower.kernels.shape;
  const index_t kv_heads = value.shape[1], dim = value.shape[3];
  require_shape(kName, "out", out.shape, {batch, query_heads, n, dim}, "to match basis and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match the basis");
  const HeadList list(kName, heads, batch * query_heads);

  ForwardReport report;
  report.rows_exact.assign(static_cast<std::size_t>(batch * query_heads), 0);
  report.rounding_bound.assign(static_cast<std::size_t>(batch * query_heads), 0.0);
  if (batch * query_heads * n == 0) return report;
  std::vector<StageSeconds> seconds(static_cast<std::size_t>(list.size()));
  const CostModel model = cost_model<T>();
  const Exec fixed{resolve_threads(exec), exec.interrupt};
  for_each_head(fixed, list.size(), [&](index_t i, const Exec& inside) {
    const index_t flat = list[i];
    const auto [b, h, g] = head_index(flat, query_heads, kv_heads);
    const StripMatrix<T> lower_half = head_strips(lower, b, h);
    StripMatrix<T> upper_half;
    if (upper != nullptr) upper_half = head_strips(*upper, b, h);
    HeadForward<T> head(lower_half, upper != nullptr ? &upper_half : nullptr,
                        head_view(value, b, g), model, inside);
    View<T, 1> lse_row;
    if (lse.data != nullptr) lse_row = {&lse(b, h, 0), {n}, {lse.strides[2]}};
    head.run(head_view(out, b, h), lse_row);
    report.rows_exact[static_cast<std::size_t>(flat)] = head.rows_exact;
    report.rounding_bound[static_cast<std::size_t>(flat)] = head.rounding_bound;
    seconds[static_cast<std::size_t>(i)] = head.seconds;
    if (i == 0) {
      for (const Level& level : head.schedule().levels) report.block_lengths.push_back(level.block);
      if (head.schedule().levels.empty()) report.block_lengths.push_back(head.schedule().diagonal);
    }
  });
  for (const StageSeconds& part : seconds) add_share(report.seconds, part, 1);
  return report;
}

template <class T>
void conv_attention_rows(const BasisView<T>& lower, const BasisView<T>* upper,
                         View<const T, 4> value, View<const index_t, 3> rows, View<T, 4> out,
                         std::span<const index_t> heads, const Exec& exec) {
  constexpr const char* kName = "conv_attention_rows";
  require_operands(kName, lower, upper, value);
  const auto [batch, query_heads, k, n] = lower.kernels.shape;
  const index_t kv_heads = value.shape[1], dim = value.shape[3], count = rows.shape[2];
  require_shape(kName, "rows", rows.shape, {batch, query_heads, count}, "to match the basis");
  require_rows(kName, rows, n);
  require_shape(kName, "out", out.shape, {batch, query_heads, count, dim},
                "to match rows and value");
  const HeadList list(kName, heads, batch * query_heads);
  if (batch * query_heads * n == 0) return;
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const auto [b, h, g] = head_index(list[i], query_heads, kv_heads);
    const std::vector<index_t> listed = listed_rows(rows, b, h);
    const StripMatrix<T> lower_half = head_strips(lower, b, h);
    StripMatrix<T> upper_half;
    if (upper != nullptr) upper_half = head_strips(*upper, b, h);
    Buffer<T> value_copy;
    const ValueRows<T> values = as_value_rows(head_view(value, b, g), dim, value_copy, inside);
    Buffer<T> means(count * dim);
    attend_strips<T>(lower_half, upper != nullptr ? &upper_half : nullptr, values.rows, dim, listed,
                     {means.data(), dim}, nullptr, inside);
    for (index_t r = 0; r < count; ++r)
      write_row(means.data() + r * dim, head_view(out, b, h), r, values.unscale);
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template ForwardReport conv_attention(const BasisView<T>&, const BasisView<T>*,                 \
                                        View<const T, 4>, View<T, 4>, View<T, 3>,                 \
                                        std::span<const index_t>, const Exec&);                   \
  template void conv_attention_rows(const BasisView<T>&, const BasisView<T>*, View<const T, 4>,   \
                                    View<const index_t, 3>, View<T, 4>, std::span<const index_t>, \
                                    const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
