#include "bindings/mask.h"
#include "bindings/ndarray.h"
#include "convbasis/backward.h"

namespace convbasis::bindings {
namespace {

void exact_backward(const py::array& query, const py::array& key, const py::array& value,
                    const py::array& grad_output, py::array& grad_query, py::array& grad_key,
                    py::array& grad_value, double scale, bool is_causal,
                    const std::optional<py::tuple>& mask, const Heads& heads, int num_threads) {
  if (heads && heads->size() == 0) return;
  dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value"), dy = input<T, 4>(grad_output, "grad_output");
    const auto dq = output<T, 4>(grad_query, "grad_query");
    const auto dk = output<T, 4>(grad_key, "grad_key");
    const auto dv = output<T, 4>(grad_value, "grad_value");
    const AttentionOptions options{scale, is_causal, mask_of(mask)};
    run(num_threads, [&](const Exec& exec) {
      exact_attention_backward<T>(q, k, v, dy, dq, dk, dv, options, listed(heads), exec);
    });
  });
}

py::dict conv_backward(const BasisTuple& lower, const std::optional<BasisTuple>& upper,
                       const py::array& query, const py::array& key, const py::array& value,
                       const py::array& grad_output, py::array& grad_query, py::array& grad_key,
                       py::array& grad_value, double scale, bool through_entries,
                       const Heads& heads, int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const BasisView<T> low = basis_view<T>(lower);
    const BasisView<T> high = upper ? basis_view<T>(*upper) : BasisView<T>{};
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value"), dy = input<T, 4>(grad_output, "grad_output");
    const auto dq = output<T, 4>(grad_query, "grad_query");
    const auto dk = output<T, 4>(grad_key, "grad_key");
    const auto dv = output<T, 4>(grad_value, "grad_value");
    BackwardReport report;
    report.rows_exact.assign(static_cast<std::size_t>(low.num_bases.size()), 0);
    if (!heads || heads->size() > 0) {
      const Gradient gradient = through_entries ? Gradient::attention : Gradient::basis;
      report = run(num_threads, [&](const Exec& exec) {
        return conv_attention_backward<T>(low, upper ? &high : nullptr, q, k, v, dy, dq, dk, dv,
                                          scale, gradient, listed(heads), exec);
      });
    }
    py::dict result;
    result["rows_exact"] = py::array_t<index_t>({low.num_bases.shape[0], low.num_bases.shape[1]},
                                                report.rows_exact.data());
    result["seconds"] = to_dict(report.seconds);
    return result;
  });
}

}  // namespace

void register_backward(py::module_& module) {
  using py::arg;
  module.def("exact_attention_backward", &exact_backward, arg("query"), arg("key"), arg("value"),
             arg("grad_output"), arg("grad_query"), arg("grad_key"), arg("grad_value"),
             arg("scale"), arg("is_causal"), arg("mask").none(true), arg("heads").none(true),
             arg("num_threads"));
  module.def("conv_attention_backward", &conv_backward, arg("lower"), arg("upper").none(true),
             arg("query"), arg("key"), arg("value"), arg("grad_output"), arg("grad_query"),
             arg("grad_key"), arg("grad_value"), arg("scale"), arg("through_entries"),
             arg("heads").none(true), arg("num_threads"));
}

}  // namespace convbasis::bindings
