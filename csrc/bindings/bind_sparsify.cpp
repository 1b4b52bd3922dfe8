#include "bindings/ndarray.h"
#include "convbasis/sparsify.h"

namespace convbasis::bindings {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Indices = py::array_t<index_t, py::array::c_style>;

template <class T>
std::span<const T> elements(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

/// Asks a Python callable of a count for that many numbers.
SparsifyOptions::Uniforms numbers_from(const py::function& source) {
  return [&source](std::span<double> numbers) {
    const py::gil_scoped_acquire gil;
    const auto drawn = py::cast<Doubles>(source(numbers.size()));
    if (static_cast<std::size_t>(drawn.size()) != numbers.size())
      throw InvalidArgument("[_core] uniforms gave " + std::to_string(drawn.size()) +
                            " numbers; expected " + std::to_string(numbers.size()));
    std::copy_n(drawn.data(), numbers.size(), numbers.data());
  };
}

SparsifyOptions::Progress progress_to(const py::object& progress) {
  if (progress.is_none()) return {};
  return [&progress](index_t chosen, index_t total) {
    const py::gil_scoped_acquire gil;
    progress(chosen, total);
  };
}

/// The fields of Sparsified. scores is "auto", "exact" or "sketched".
py::dict sparsify(const Columns& x, bool is_bss, const std::string& scores,
                  std::optional<index_t> num_columns, double epsilon, double delta,
                  const py::function& uniforms, const py::object& progress, int num_threads) {
  using Scores = SparsifyOptions::Scores;
  SparsifyOptions options;
  options.method = is_bss ? SparsifyOptions::Method::bss : SparsifyOptions::Method::leverage;
  if (scores != "auto") options.scores = scores == "exact" ? Scores::exact : Scores::sketched;
  options.num_columns = num_columns;
  options.epsilon = epsilon;
  options.delta = delta;
  options.uniforms = numbers_from(uniforms);
  options.progress = progress_to(progress);
  const Sparsified found =
      run(num_threads, [&](const Exec& exec) { return sparsify_features(x, options, exec); });
  py::dict result;
  result["indices"] = to_array(found.indices);
  result["weights"] = to_array(found.weights);
  result["num_columns"] = found.num_columns;
  result["rank"] = found.rank;
  result["is_sketched"] = found.is_sketched;
  result["epsilon_promised"] = found.epsilon_promised;
  result["epsilon"] = found.epsilon;
  result["condition_number"] = found.condition_number;
  result["radius"] = found.radius;
  result["logit_deviation"] = found.logit_deviation;
  result["error_bound"] = found.error_bound;
  result["error"] = found.error;
  result["trivial_error"] = found.trivial_error;
  return result;
}

template <class... Rest>
py::dict of_dense(const py::array& x, Rest... rest) {
  return sparsify(input<double, 2>(x, "x"), rest...);
}

/// x is num_rows, starts, rows, values.
template <class... Rest>
py::dict of_sparse(const std::tuple<index_t, Indices, Indices, Doubles>& x, Rest... rest) {
  const auto& [num_rows, starts, rows, values] = x;
  return sparsify(SparseColumns{num_rows, elements(starts), elements(rows), elements(values)},
                  rest...);
}

template <class X, class... Rest>
void define(py::module_& module, const char* name, py::dict (*function)(X, Rest...)) {
  using py::arg;
  module.def(name, function, arg("x"), arg("is_bss"), arg("scores"), arg("num_columns"),
             arg("epsilon"), arg("delta"), arg("uniforms"), arg("progress"), arg("num_threads"));
}

}  // namespace

void register_sparsify(py::module_& module) {
  define(module, "sparsify_dense",
         &of_dense<bool, const std::string&, std::optional<index_t>, double, double,
                   const py::function&, const py::object&, int>);
  define(module, "sparsify_sparse",
         &of_sparse<bool, const std::string&, std::optional<index_t>, double, double,
                    const py::function&, const py::object&, int>);
}

}  // namespace convbasis::bindings
