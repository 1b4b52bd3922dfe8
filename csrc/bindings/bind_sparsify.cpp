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

py::array_t<double> forms_of(const Columns& columns, const py::array& matrix, index_t count,
                             int num_threads) {
  const auto m = input<double, 2>(matrix, "matrix");
  auto forms = make_array<double>({count});
  const std::span<double> result{forms.mutable_data(), static_cast<std::size_t>(count)};
  run(num_threads, [&](const Exec& exec) { quadratic_forms(columns, m, result, exec); });
  return forms;
}

py::array_t<double> dense_forms(const py::array& x, const py::array& matrix, int num_threads) {
  const auto columns = input<double, 2>(x, "x");
  return forms_of(columns, matrix, columns.shape[1], num_threads);
}

py::array_t<double> sparse_forms(index_t num_rows, const Indices& starts, const Indices& rows,
                                 const Doubles& values, const py::array& matrix, int num_threads) {
  const SparseColumns columns{num_rows, elements(starts), elements(rows), elements(values)};
  const index_t count = std::max<index_t>(starts.size() - 1, 0);
  return forms_of(columns, matrix, count, num_threads);
}

/// inverses and squares, (2, k, k) each
py::tuple inverses_of(const py::array& matrix, double low, double high, int num_threads) {
  const auto m = input<double, 2>(matrix, "matrix");
  const index_t k = m.shape[0];
  auto inverses = make_array<double>({2, k, k}), squares = make_array<double>({2, k, k});
  const auto inverse = contiguous_view<double, 3>(inverses.mutable_data(), {2, k, k});
  const auto square = contiguous_view<double, 3>(squares.mutable_data(), {2, k, k});
  run(num_threads,
      [&](const Exec& exec) { barrier_inverses(m, low, high, inverse, square, exec); });
  return py::make_tuple(inverses, squares);
}

py::array_t<double> gram_of(const py::array& x, int num_threads) {
  const auto rows = input<double, 2>(x, "x");
  const index_t n = rows.shape[0];
  auto gram = make_array<double>({n, n});
  const auto result = contiguous_view<double, 2>(gram.mutable_data(), {n, n});
  run(num_threads, [&](const Exec& exec) { gram_matrix(rows, result, exec); });
  return gram;
}

/// values, vectors as rows
py::tuple eigen_of(const py::array& matrix) {
  const auto m = input<double, 2>(matrix, "matrix");
  const index_t n = m.shape[0];
  auto values = make_array<double>({n}), vectors = make_array<double>({n, n});
  const std::span<double> found{values.mutable_data(), static_cast<std::size_t>(n)};
  const auto rows = contiguous_view<double, 2>(vectors.mutable_data(), {n, n});
  run(1, [&](const Exec&) { symmetric_eigen(m, found, rows); });
  return py::make_tuple(values, vectors);
}

}  // namespace

void register_sparsify(py::module_& module) {
  using py::arg;
  module.def("dense_quadratic_forms", &dense_forms, arg("x"), arg("matrix"), arg("num_threads"));
  module.def("sparse_quadratic_forms", &sparse_forms, arg("num_rows"), arg("starts"), arg("rows"),
             arg("values"), arg("matrix"), arg("num_threads"));
  module.def("gram_matrix", &gram_of, arg("x"), arg("num_threads"));
  module.def("symmetric_eigen", &eigen_of, arg("matrix"));
  module.def("barrier_inverses", &inverses_of, arg("matrix"), arg("low"), arg("high"),
             arg("num_threads"));
}

}  // namespace convbasis::bindings
