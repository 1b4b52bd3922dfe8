#include <variant>

#include "bindings/ndarray.h"
#include "convbasis/calibrate.h"
#include "cpu/key_selection.h"

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
        const py::ssize_t blocks = (c.rows + kKeyBlock - 1) / kKeyBlock;
        auto retrieved = make_array<index_t>({batch, heads, blocks});
        auto heavy = near.attr("copy")().template cast<py::array_t<index_t>>();
        auto has_far = make_array<bool>({batch, heads});
        auto sample_error = make_array<double>({batch, heads});
        for (std::size_t i = 0; i < c.heads.size(); ++i) {
          const auto& head = c.heads[i];
          near.mutable_data()[i] = head.near_blocks * kKeyBlock;
          std::copy(head.retrieved.begin(), head.retrieved.end(),
                    retrieved.mutable_data() + static_cast<py::ssize_t>(i) * blocks);
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

template <class T>
py::array_t<T> array_of(const std::vector<T>& numbers) {
  return py::array_t<T>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
}

/// All that the calibration says of one head, keys drawn for each query block among it.
py::dict head(const AnyCalibration& any, index_t index) {
  return std::visit(
      [&]<class T>(const Calibration<T>& c) {
        const HeadCalibration<T>& found = c.heads.at(static_cast<std::size_t>(index));
        const FarKeys<T> far(c, found, index);
        py::list drawn;
        for (index_t block = 0; block * kKeyBlock < c.rows; ++block) {
          drawn.append(array_of(far.draw(select_keys(c, found, block), block).keys));
        }
        py::dict result;
        result["near_blocks"] = found.near_blocks;
        result["retrieved"] = array_of(found.retrieved);
        result["has_far"] = found.has_far;
        result["heavy"] = array_of(found.heavy);
        result["ranked"] = array_of(found.ranked)
                               .reshape({static_cast<py::ssize_t>(drawn.size()),
                                         static_cast<py::ssize_t>(c.most_ranked)});
        result["key_weights"] = array_of(found.key_weights);
        result["lag_weights"] = array_of(found.lag_weights);
        result["drawn"] = drawn;
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
  py::class_<AnyCalibration>(module, "Calibration")
      .def("account", &account)
      .def("head", &head, arg("index"));
  module.def("calibrate", &fit, arg("query"), arg("key"), arg("value"), arg("scale"),
             arg("options"), arg("tol"), arg("num_threads"));
  module.def("calibrated_attention", &attend, arg("query"), arg("key"), arg("value"),
             arg("calibration"), arg("out"), arg("lse").none(true), arg("far_share"), arg("scale"),
             arg("heads").none(true), arg("num_threads"));
  module.def("exact_blocks", &blocks, arg("query"), arg("key"), arg("value"), arg("blocks"),
             arg("out"), arg("lse").none(true), arg("scale"), arg("num_threads"));
}

}  // namespace convbasis::bindings
