#include <optional>

#include "bindings/ndarray.h"
#include "bindings/strip_starts.h"
#include "convbasis/recover.h"
#include "convbasis/toeplitz.h"

namespace convbasis::bindings {
namespace {

template <class T>
BasisView<T> basis_view(const py::array& starts, const py::array& num_bases,
                        const py::array& kernels, index_t num_columns) {
  return {input<index_t, 3>(starts, "starts"), input<index_t, 2>(num_bases, "num_bases"),
          input<T, 4>(kernels, "kernels"), num_columns};
}

py::tuple starts_of(const py::array& query, const py::array& key, double scale,
                    std::optional<index_t> num_bases, index_t window, double delta, double epsilon,
                    bool bisect, index_t value_dim, int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const RecoverOptions options{
        num_bases,
        window,
        delta,
        epsilon,
        bisect ? RecoverOptions::Search::bisect : RecoverOptions::Search::scan,
        value_dim};
    const StripStarts found = run(num_threads, [&](const Exec& exec) {
      return recover_starts<T>(q, k, scale, options, exec);
    });
    return starts_tuple(found);
  });
}

bool fill_kernels(const py::array& query, const py::array& key, const py::array& starts,
                  const py::array& num_bases, py::array& kernels, double scale, int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto s = input<index_t, 3>(starts, "starts");
    const auto counts = input<index_t, 2>(num_bases, "num_bases");
    const auto to = output<T, 4>(kernels, "kernels");
    return run(num_threads, [&](const Exec& exec) {
      return recover_kernels<T>(q, k, s, counts, scale, to, exec);
    });
  });
}

py::array_t<double> deviation_of(const py::array& query, const py::array& key,
                                 const py::array& starts, const py::array& num_bases,
                                 const py::array& kernels, index_t num_columns,
                                 const std::optional<py::array>& rows, double scale,
                                 int num_threads) {
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto basis = basis_view<T>(starts, num_bases, kernels, num_columns);
    const View<const index_t, 3> listed =
        rows ? input<index_t, 3>(*rows, "rows") : View<const index_t, 3>{};
    auto deviation = make_array<double>({q.shape[0], q.shape[1]});
    const auto to = output<double, 2>(deviation, "deviation");
    if (rows && listed.size() == 0) {
      std::fill_n(deviation.mutable_data(), deviation.size(), 0.0);
    } else {
      run(num_threads,
          [&](const Exec& exec) { logit_deviation<T>(q, k, scale, basis, listed, to, exec); });
    }
    return deviation;
  });
}

void matmul(const py::array& starts, const py::array& num_bases, const py::array& kernels,
            index_t num_columns, const py::array& x, py::array& out, bool transpose,
            int num_threads) {
  dispatch(kernels, "kernels", [&]<class T>(T) {
    const auto basis = basis_view<T>(starts, num_bases, kernels, num_columns);
    const auto in = input<T, 4>(x, "x");
    const auto y = output<T, 4>(out, "out");
    run(num_threads, [&](const Exec& exec) { conv_matmul<T>(basis, in, y, transpose, exec); });
  });
}

void sums_of(const py::array& starts, const py::array& num_bases, const py::array& kernels,
             index_t num_columns, py::array& out, int num_threads) {
  dispatch(kernels, "kernels", [&]<class T>(T) {
    const auto basis = basis_view<T>(starts, num_bases, kernels, num_columns);
    const auto y = output<T, 3>(out, "out");
    run(num_threads, [&](const Exec& exec) { row_sums<T>(basis, y, exec); });
  });
}

}  // namespace

void register_basis(py::module_& module) {
  using py::arg;
  module.def("recover_starts", &starts_of, arg("query"), arg("key"), arg("scale"),
             arg("num_bases").none(true), arg("window"), arg("delta"), arg("epsilon"),
             arg("bisect"), arg("value_dim"), arg("num_threads"));
  module.def("recover_kernels", &fill_kernels, arg("query"), arg("key"), arg("starts"),
             arg("num_bases"), arg("kernels"), arg("scale"), arg("num_threads"));
  module.def("logit_deviation", &deviation_of, arg("query"), arg("key"), arg("starts"),
             arg("num_bases"), arg("kernels"), arg("num_columns"), arg("rows").none(true),
             arg("scale"), arg("num_threads"));
  module.def("conv_matmul", &matmul, arg("starts"), arg("num_bases"), arg("kernels"),
             arg("num_columns"), arg("x"), arg("out"), arg("transpose"), arg("num_threads"));
  module.def("row_sums", &sums_of, arg("starts"), arg("num_bases"), arg("kernels"),
             arg("num_columns"), arg("out"), arg("num_threads"));
}

}  // namespace convbasis::bindings
