#include "bindings/mask.h"
#include "bindings/ndarray.h"
#include "convbasis/logit_range.h"
#include "convbasis/lowrank.h"
#include "convbasis/polynomial.h"

namespace convbasis::bindings {
namespace {

using Numbers = py::array_t<double, py::array::c_style>;
using Indices = py::array_t<index_t, py::array::c_style>;
/// coefficients, centre, exact rows, exact columns: one tuple a head.
using Polynomials = std::vector<std::tuple<Numbers, Numbers, Indices, Indices>>;

std::vector<HeadPolynomial> polynomials_of(const Polynomials& heads) {
  const auto list = []<class T>(const py::array_t<T, py::array::c_style>& array) {
    return std::vector<T>(array.data(), array.data() + array.size());
  };
  std::vector<HeadPolynomial> polynomials;
  for (const auto& [coefficients, centre, rows, columns] : heads)
    polynomials.push_back({list(coefficients), list(centre), list(rows), list(columns)});
  return polynomials;
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
    const AttentionOptions options{scale, is_causal, mask_of(mask)};
    const std::vector<HeadPolynomial> polynomials = polynomials_of(heads_polynomials);
    const auto count = polynomials.size();
    LowRankReport report{std::vector<index_t>(count), std::vector<index_t>(count)};
    if (!heads || heads->size() > 0)
      report = run(num_threads, [&](const Exec& exec) {
        return polynomial_attention<T>(q, k, v, y, l, polynomials, options, listed(heads), exec);
      });
    py::dict result;
    const std::vector<py::ssize_t> shape{q.shape[0], q.shape[1]};
    result["rows_exact"] = Indices(shape, report.rows_exact.data());
    result["rank"] = Indices(shape, report.rank.data());
    return result;
  });
}

py::dict norms(const py::array& query, const py::array& key, double scale, bool is_causal,
               index_t sample_rows, int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const AttentionOptions options{scale, is_causal, {}};
    std::vector<double> sampled;
    const LogitNorms<T> found = run(num_threads, [&](const Exec& exec) {
      LogitNorms<T> of_rows = logit_norms<T>(q, k, options, {}, exec);
      if (sample_rows > 0) sampled = sampled_radius<T>(q, k, of_rows, sample_rows, options, exec);
      return of_rows;
    });
    const auto [batch, heads, n_q, head_dim] = q.shape;
    const index_t kv_heads = k.shape[1];
    py::dict result;
    result["centre"] = py::array_t<T>({batch, kv_heads, head_dim}, found.centre.data());
    result["query"] = Numbers({batch, heads, n_q}, found.query.data());
    result["key"] = Numbers({batch, kv_heads, k.shape[2]}, found.key.data());
    result["radius"] = Numbers({batch, heads}, found.radius.data());
    if (sample_rows > 0) result["sampled_radius"] = Numbers({batch, heads}, sampled.data());
    return result;
  });
}

py::tuple polynomial(index_t degree, double radius) {
  const ExpPolynomial found = exp_polynomial(degree, radius);
  return py::make_tuple(
      Numbers(static_cast<py::ssize_t>(found.coefficients.size()), found.coefficients.data()),
      found.epsilon);
}

double rounding(const Numbers& coefficients, double radius, double unit, double least_mean) {
  return polynomial_rounding({coefficients.data(), static_cast<std::size_t>(coefficients.size())},
                             radius, unit, least_mean);
}

}  // namespace

void register_lowrank(py::module_& module) {
  using py::arg;
  module.def("polynomial_attention", &attend, arg("query"), arg("key"), arg("value"), arg("out"),
             arg("lse").none(true), arg("polynomials"), arg("scale"), arg("is_causal"),
             arg("mask").none(true), arg("heads").none(true), arg("num_threads"));
  module.def("logit_norms", &norms, arg("query"), arg("key"), arg("scale"), arg("is_causal"),
             arg("sample_rows"), arg("num_threads"));
  module.def("exp_polynomial", &polynomial, arg("degree"), arg("radius"));
  module.def("polynomial_rounding", &rounding, arg("coefficients"), arg("radius"), arg("unit"),
             arg("least_mean"));
  module.def("polynomial_degree", &polynomial_degree, arg("epsilon"), arg("radius"), arg("unit"),
             arg("mean_zero"));
  module.def("feature_count", &feature_count, arg("head_dim"), arg("degree"));
}

}  // namespace convbasis::bindings
