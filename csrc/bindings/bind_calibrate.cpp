#include <variant>

#include "bindings/ndarray.h"
#include "convbasis/calibrate.h"

namespace convbasis::bindings {
namespace {

/// A calibration of float or double arrays, as Python holds it between two calls.
struct AnyCalibration {
  std::variant<Calibration<float>, Calibration<double>> held;
};

using Options = std::tuple<index_t, index_t, index_t, index_t, index_t, index_t, std::uint64_t>;

AnyCalibration fit(const py::array& query, const py::array& key, const py::array& value,
                   double scale, const Options& wanted, double tol, int num_threads) {
  const auto [window, sinks, heavy, retrieval, rows, keys, seed] = wanted;
  const CalibrateOptions options{window, sinks, heavy, retrieval, rows, keys, seed, tol};
  return dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value");
    const AttentionOptions attention{scale, true, {}};
    return AnyCalibration{run(num_threads, [&](const Exec& exec) {
      return calibrate<T>(q, k, v, options, attention, exec);
    })};
  });
}

/// What the calibration says of each head, as arrays (batch, heads, ...).
py::dict account(const AnyCalibration& any) {
  return std::visit(
      [](const auto& c) {
        py::dict result;
        const py::ssize_t batch = c.batch, heads = c.query_heads;
        auto near = make_array<index_t>({batch, heads});
        auto retrieved = near.attr("copy")().template cast<py::array_t<index_t>>();
        auto heavy = near.attr("copy")().template cast<py::array_t<index_t>>();
        auto has_far = make_array<bool>({batch, heads});
        auto sample_error = make_array<double>({batch, heads});
        for (std::size_t i = 0; i < c.heads.size(); ++i) {
          const auto& head = c.heads[i];
          near.mutable_data()[i] = head.near_blocks * kKeyBlock;
          retrieved.mutable_data()[i] = head.retrieved;
          heavy.mutable_data()[i] = static_cast<index_t>(head.heavy.size());
          has_far.mutable_data()[i] = head.has_far;
          sample_error.mutable_data()[i] = head.sample_error;
        }
        result["window"] = near;
        result["retrieved"] = retrieved;
        result["heavy_keys"] = heavy;
        result["has_far"] = has_far;
        result["sample_error"] = sample_error;
        return result;
      },
      any.held);
}

void attend(const py::array& query, const py::array& key, const py::array& value,
            const AnyCalibration& any, py::array& out, py::object lse, py::array& far_share,
            double scale, const Heads& heads, int num_threads) {
  if (heads && heads->size() == 0) return;
  std::visit(
      [&]<class T>(const Calibration<T>& calibration) {
        const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
        const auto v = input<T, 4>(value, "value");
        const auto y = output<T, 4>(out, "out");
        const auto l = optional_output<T, 3>(lse, "lse");
        const auto share = output<T, 3>(far_share, "far_share");
        const AttentionOptions attention{scale, true, {}};
        run(num_threads, [&](const Exec& exec) {
          calibrated_attention<T>(q, k, v, calibration, y, l, share, attention, listed(heads),
                                  exec);
        });
      },
      any.held);
}

void blocks(const py::array& query, const py::array& key, const py::array& value,
            const py::array_t<bool, py::array::c_style>& chosen, py::array& out, py::object lse,
            double scale, int num_threads) {
  dispatch(query, "query", [&]<class T>(T) {
    const auto q = input<T, 4>(query, "query"), k = input<T, 4>(key, "key");
    const auto v = input<T, 4>(value, "value");
    const auto y = output<T, 4>(out, "out");
    const auto l = optional_output<T, 3>(lse, "lse");
    const std::vector<char> flags(chosen.data(), chosen.data() + chosen.size());
    const AttentionOptions attention{scale, true, {}};
    run(num_threads,
        [&](const Exec& exec) { exact_blocks<T>(q, k, v, flags, y, l, attention, exec); });
  });
}

}  // namespace

void register_calibrate(py::module_& module) {
  using py::arg;
  py::class_<AnyCalibration>(module, "Calibration").def("account", &account);
  module.def("calibrate", &fit, arg("query"), arg("key"), arg("value"), arg("scale"),
             arg("options"), arg("tol"), arg("num_threads"));
  module.def("calibrated_attention", &attend, arg("query"), arg("key"), arg("value"),
             arg("calibration"), arg("out"), arg("lse").none(true), arg("far_share"), arg("scale"),
             arg("heads").none(true), arg("num_threads"));
  module.def("exact_blocks", &blocks, arg("query"), arg("key"), arg("value"), arg("blocks"),
             arg("out"), arg("lse").none(true), arg("scale"), arg("num_threads"));
}

}  // namespace convbasis::bindings
