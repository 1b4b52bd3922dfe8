#include "bindings/ndarray.h"
#include "convbasis/logit_range.h"
#include "convbasis/polynomial.h"
#include "convbasis/polynomial_plan.h"

namespace convbasis::bindings {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;

template <class T>
py::array_t<T> to_array(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), values.data());
}

std::span<const double> numbers(const Doubles& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

py::tuple polynomial_of(index_t degree, double radius) {
  const ExpPolynomial p = exp_polynomial(degree, radius);
  return py::make_tuple(to_array(p.coefficients, {degree + 1}), p.epsilon);
}

double error_of(const Doubles& coefficients, double radius) {
  return polynomial_error(numbers(coefficients), radius);
}

double rounding_of(const Doubles& coefficients, double radius, double unit, double least_mean) {
  return polynomial_rounding(numbers(coefficients), radius, unit, least_mean);
}

/// centre, query norms, key norms, radius, sampled lower bound of the radius
py::tuple logit_range(const py::array& query, const py::array& key, double scale, bool is_causal,
                      index_t sampled_rows, int num_threads) {
  return dispatch(query, "query", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const AttentionOptions options{scale, is_causal, {}};
    std::vector<double> sampled;
    const LogitNorms<T> norms = run(num_threads, [&](const Exec& exec) {
      LogitNorms<T> found = logit_norms<T>(q, k, options, {}, exec);
      sampled = sampled_radius<T>(q, k, found, sampled_rows, options, exec);
      return found;
    });
    const auto [batch, heads, n, d] = q.shape;
    const index_t kv_heads = k.shape[1], m = k.shape[2];
    return py::make_tuple(
        to_array(norms.centre, {batch, kv_heads, d}), to_array(norms.query, {batch, heads, n}),
        to_array(norms.key, {batch, kv_heads, m}), to_array(norms.radius, {batch, heads}),
        to_array(sampled, {batch, heads}));
  });
}

std::vector<double> radii_of(index_t head_dim, double epsilon, double unit, bool mean_zero,
                             index_t most_features) {
  const py::gil_scoped_release nogil;
  return degree_radii({head_dim, 1, 1, epsilon, unit, mean_zero}, most_features);
}

py::dict plan_of(const Doubles& query_norms, const Doubles& key_norms, index_t head_dim,
                 index_t value_dim, double visible_share, double epsilon, double unit,
                 bool mean_zero, const std::array<double, 2>& rates, const Doubles& radii) {
  const PolynomialPlan plan =
      plan_polynomial(numbers(query_norms), numbers(key_norms),
                      {head_dim, value_dim, visible_share, epsilon, unit, mean_zero},
                      {rates[0], rates[1]}, numbers(radii));
  py::dict result;
  result["exact_rows"] =
      to_array(plan.exact_rows, {static_cast<py::ssize_t>(plan.exact_rows.size())});
  result["exact_columns"] =
      to_array(plan.exact_columns, {static_cast<py::ssize_t>(plan.exact_columns.size())});
  result["radius"] = plan.radius;
  result["degree"] = plan.degree;
  result["epsilon"] = plan.epsilon;
  result["cost_polynomial"] = plan.cost_polynomial;
  result["cost_exact"] = plan.cost_exact;
  return result;
}

std::array<double, 2> rates_of(bool is_double) {
  const py::gil_scoped_release nogil;
  const PolynomialRates rates =
      polynomial_rates(is_double ? cost_model<double>() : cost_model<float>());
  return {rates.exact, rates.feature};
}

}  // namespace

void register_polynomial(py::module_& module) {
  using py::arg;
  module.attr("MOST_DEGREE") = kMostDegree;
  module.attr("MOST_RADIUS") = kMostRadius;
  module.def("exp_polynomial", &polynomial_of, arg("degree"), arg("radius"));
  module.def("polynomial_error", &error_of, arg("coefficients"), arg("radius"));
  module.def("polynomial_rounding", &rounding_of, arg("coefficients"), arg("radius"), arg("unit"),
             arg("least_mean"));
  module.def("polynomial_degree", &polynomial_degree, arg("epsilon"), arg("radius"), arg("unit"),
             arg("mean_zero"));
  module.def("feature_count", &feature_count, arg("head_dim"), arg("degree"));
  module.def("logit_range", &logit_range, arg("query"), arg("key"), arg("scale"), arg("is_causal"),
             arg("sampled_rows"), arg("num_threads"));
  module.def("polynomial_rates", &rates_of, arg("is_double"));
  module.def("degree_radii", &radii_of, arg("head_dim"), arg("epsilon"), arg("unit"),
             arg("mean_zero"), arg("most_features"));
  module.def("plan_polynomial", &plan_of, arg("query_norms"), arg("key_norms"), arg("head_dim"),
             arg("value_dim"), arg("visible_share"), arg("epsilon"), arg("unit"), arg("mean_zero"),
             arg("rates"), arg("radii"));
}

}  // namespace convbasis::bindings
