#include "bindings/mask.h"
#include "bindings/ndarray.h"
#include "bindings/polynomials.h"
#include "convbasis/lowrank.h"

namespace convbasis::bindings {
namespace {

py::dict to_dict(const LowRankReport& report, py::ssize_t batch, py::ssize_t heads) {
  py::dict result;
  const std::vector<py::ssize_t> shape{batch, heads};
  result["rows_exact"] = Indices(shape, report.rows_exact.data());
  result["rank"] = Indices(shape, report.rank.data());
  return result;
}

/// call(polynomials, options, exec) for the listed heads, if any; what it reports.
template <class Call>
py::dict run_polynomials(const py::array& query, const Polynomials& heads_polynomials, double scale,
                         bool is_causal, const std::optional<py::tuple>& mask, const Heads& heads,
                         int num_threads, const Call& call) {
  const AttentionOptions options{scale, is_causal, mask_of(mask)};
  const std::vector<HeadPolynomial> polynomials = polynomials_of(heads_polynomials);
  const auto count = polynomials.size();
  LowRankReport report{std::vector<index_t>(count), std::vector<index_t>(count)};
  if (!heads || heads->size() > 0)
    report = run(num_threads, [&](const Exec& exec) { return call(polynomials, options, exec); });
  return to_dict(report, query.shape(0), query.shape(1));
}

py::dict attend(const py::array& query, const py::array& key, const py::array& value,
                py::array& out, py::object lse, const Polynomials& heads_polynomials, double scale,
                bool is_causal, const std::optional<py::tuple>& mask, const Heads& heads,
                int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value");
    const auto y = output<T, 4>(out, "out");
    const auto l = optional_output<T, 3>(lse, "lse");
    return run_polynomials(query, heads_polynomials, scale, is_causal, mask, heads, num_threads,
                           [&](const auto& polynomials, const auto& options, const Exec& exec) {
                             return polynomial_attention<T>(q, k, v, y, l, polynomials, options,
                                                            listed(heads), exec);
                           });
  });
}

py::dict differentiate(const py::array& query, const py::array& key, const py::array& value,
                       const py::array& grad_output, py::array& grad_query, py::array& grad_key,
                       py::array& grad_value, const Polynomials& heads_polynomials, double scale,
                       bool is_causal, const std::optional<py::tuple>& mask, const Heads& heads,
                       int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value"), dy = input<T, 4>(grad_output, "grad_output");
    const auto dq = output<T, 4>(grad_query, "grad_query");
    const auto dk = output<T, 4>(grad_key, "grad_key");
    const auto dv = output<T, 4>(grad_value, "grad_value");
    return run_polynomials(query, heads_polynomials, scale, is_causal, mask, heads, num_threads,
                           [&](const auto& polynomials, const auto& options, const Exec& exec) {
                             return polynomial_attention_backward<T>(q, k, v, dy, dq, dk, dv,
                                                                     polynomials, options,
                                                                     listed(heads), exec);
                           });
  });
}

}  // namespace

void register_lowrank(py::module_& module) {
  using py::arg;
  module.def("polynomial_attention", &attend, arg("query"), arg("key"), arg("value"), arg("out"),
             arg("lse").none(true), arg("polynomials"), arg("scale"), arg("is_causal"),
             arg("mask").none(true), arg("heads").none(true), arg("num_threads"));
  module.def("polynomial_attention_backward", &differentiate, arg("query"), arg("key"),
             arg("value"), arg("grad_output"), arg("grad_query"), arg("grad_key"),
             arg("grad_value"), arg("polynomials"), arg("scale"), arg("is_causal"),
             arg("mask").none(true), arg("heads").none(true), arg("num_threads"));
}

}  // namespace convbasis::bindings
