#include <optional>

#include "bindings/mask.h"
#include "bindings/ndarray.h"
#include "convbasis/attention.h"

namespace convbasis::bindings {
namespace {

void exact(const py::array& query, const py::array& key, const py::array& value, py::array& out,
           py::object lse, double scale, bool is_causal, const std::optional<py::tuple>& mask,
           const Heads& heads, int num_threads) {
  if (heads && heads->size() == 0) return;
  dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value");
    const auto y = output<T, 4>(out, "out");
    const auto l = optional_output<T, 3>(lse, "lse");
    const AttentionOptions options{scale, is_causal, mask_of(mask)};
    run(num_threads,
        [&](const Exec& exec) { exact_attention<T>(q, k, v, y, l, options, listed(heads), exec); });
  });
}

void rows(const py::array& query, const py::array& key, const py::array& value,
          const py::array& listed_rows, py::array& out, py::object lse, double scale,
          bool is_causal, const std::optional<py::tuple>& mask, const Heads& heads,
          int num_threads) {
  if (heads && heads->size() == 0) return;
  dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value");
    const auto r = input<index_t, 3>(listed_rows, "rows");
    const auto y = output<T, 4>(out, "out");
    const auto l = optional_output<T, 3>(lse, "lse");
    const AttentionOptions options{scale, is_causal, mask_of(mask)};
    run(num_threads, [&](const Exec& exec) {
      attention_rows<T>(q, k, v, r, y, l, options, listed(heads), exec);
    });
  });
}

py::dict to_dict(const ForwardReport& report, py::ssize_t batch, py::ssize_t heads) {
  py::dict result;
  result["rows_exact"] = py::array_t<index_t>({batch, heads}, report.rows_exact.data());
  result["rounding_bound"] = py::array_t<double>({batch, heads}, report.rounding_bound.data());
  result["seconds"] = bindings::to_dict(report.seconds);
  result["block_lengths"] = py::cast(report.block_lengths);
  return result;
}

py::dict conv(const BasisTuple& lower, const std::optional<BasisTuple>& upper,
              const py::array& value, py::array& out, py::object lse, const Heads& heads,
              int num_threads) {
  return dispatch(value, "value", [&]<class T>(T) {
    const BasisView<T> low = basis_view<T>(lower);
    const BasisView<T> high = upper ? basis_view<T>(*upper) : BasisView<T>{};
    const auto v = input<T, 4>(value, "value");
    const auto y = output<T, 4>(out, "out");
    const auto l = optional_output<T, 3>(lse, "lse");
    ForwardReport report;
    if (heads && heads->size() == 0) {
      const auto count = static_cast<std::size_t>(low.num_bases.size());
      report.rows_exact.assign(count, 0);
      report.rounding_bound.assign(count, 0.0);
    } else {
      report = run(num_threads, [&](const Exec& exec) {
        return conv_attention<T>(low, upper ? &high : nullptr, v, y, l, listed(heads), exec);
      });
    }
    return to_dict(report, low.num_bases.shape[0], low.num_bases.shape[1]);
  });
}

void conv_rows(const BasisTuple& lower, const std::optional<BasisTuple>& upper,
               const py::array& value, const py::array& listed_rows, py::array& out,
               const Heads& heads, int num_threads) {
  if (heads && heads->size() == 0) return;
  dispatch(value, "value", [&]<class T>(T) {
    const BasisView<T> low = basis_view<T>(lower);
    const BasisView<T> high = upper ? basis_view<T>(*upper) : BasisView<T>{};
    const auto v = input<T, 4>(value, "value");
    const auto r = input<index_t, 3>(listed_rows, "rows");
    const auto y = output<T, 4>(out, "out");
    run(num_threads, [&](const Exec& exec) {
      conv_attention_rows<T>(low, upper ? &high : nullptr, v, r, y, listed(heads), exec);
    });
  });
}

index_t not_finite(const std::vector<py::array>& arrays, int num_threads) {
  if (arrays.empty()) return 0;
  return dispatch(arrays.front(), "arrays", [&]<class T>(T) {
    std::vector<View<const T, 4>> views;
    for (const py::array& array : arrays) views.push_back(input<T, 4>(array, "arrays"));
    return run(num_threads, [&](const Exec& exec) { return first_not_finite<T>(views, exec); });
  });
}

py::array_t<double> norms_of(const py::array& array, int num_threads) {
  return dispatch(array, "array", [&]<class T>(T) {
    const auto view = input<T, 4>(array, "array");
    auto norms = make_array<double>({view.shape[0], view.shape[1], view.shape[2]});
    const auto to = output<double, 3>(norms, "norms");
    run(num_threads, [&](const Exec& exec) { row_norms<T>(view, to, exec); });
    return norms;
  });
}

}  // namespace

void register_attention(py::module_& module) {
  using py::arg;
  module.def("exact_attention", &exact, arg("query"), arg("key"), arg("value"), arg("out"),
             arg("lse").none(true), arg("scale"), arg("is_causal"), arg("mask").none(true),
             arg("heads").none(true), arg("num_threads"));
  module.def("attention_rows", &rows, arg("query"), arg("key"), arg("value"), arg("rows"),
             arg("out"), arg("lse").none(true), arg("scale"), arg("is_causal"),
             arg("mask").none(true), arg("heads").none(true), arg("num_threads"));
  module.def("conv_attention", &conv, arg("lower"), arg("upper").none(true), arg("value"),
             arg("out"), arg("lse").none(true), arg("heads").none(true), arg("num_threads"));
  module.def("conv_attention_rows", &conv_rows, arg("lower"), arg("upper").none(true), arg("value"),
             arg("rows"), arg("out"), arg("heads").none(true), arg("num_threads"));
  module.def("first_not_finite", &not_finite, arg("arrays"), arg("num_threads"));
  module.def("row_norms", &norms_of, arg("array"), arg("num_threads"));
}

}  // namespace convbasis::bindings
