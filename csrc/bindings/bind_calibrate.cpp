#include <algorithm>
#include <array>
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

/// Query, key and value of a call, which it keeps alive, packed.
struct AnySelfAttention {
  AnySelfAttention(const py::array& q, const py::array& k, const py::array& v, double scale,
                   int num_threads)
      : arrays{q, k, v}, held(dispatch(q, "query", [&]<class T>(T) -> Held {
          const auto query = input<T, 4>(q, "query"), key = input<T, 4>(k, "key");
          const auto value = input<T, 4>(v, "value");
          return run(num_threads, [&](const Exec& exec) {
            return SelfAttention<T>(query, key, value, {scale, true, {}}, exec);
          });
        })) {}

  using Held = std::variant<SelfAttention<float>, SelfAttention<double>>;
  std::array<py::array, 3> arrays;
  Held held;
};

using Options = std::tuple<index_t, index_t, index_t, index_t, index_t, index_t, std::uint64_t>;

AnyCalibration fit(const AnySelfAttention& any, const Options& wanted, double tol,
                   int num_threads) {
  const auto [window, sinks, heavy, retrieval, rows, keys, seed] = wanted;
  const CalibrateOptions options{window, sinks, heavy, retrieval, rows, keys, seed, tol};
  return std::visit(
      [&](const auto& attention) {
        return AnyCalibration{run(
            num_threads, [&](const Exec& exec) { return calibrate(attention, options, exec); })};
      },
      any.held);
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
        auto lags = near.attr("copy")().template cast<py::array_t<index_t>>();
        auto has_far = make_array<bool>({batch, heads});
        auto sample_error = make_array<double>({batch, heads});
        for (std::size_t i = 0; i < c.heads.size(); ++i) {
          const auto& head = c.heads[i];
          near.mutable_data()[i] = head.near_blocks * kKeyBlock;
          std::copy(head.retrieved.begin(), head.retrieved.end(),
                    retrieved.mutable_data() + static_cast<py::ssize_t>(i) * blocks);
          heavy.mutable_data()[i] = static_cast<index_t>(head.heavy.size());
          lags.mutable_data()[i] = static_cast<index_t>(head.lags.size());
          has_far.mutable_data()[i] = head.has_far;
          sample_error.mutable_data()[i] = head.sample_error;
        }
        result["window"] = near;
        result["retrieved"] = retrieved;
        result["heavy_keys"] = heavy;
        result["lags"] = lags;
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
        const FarKeys<T> far(c, found, index, {}, 0);
        py::list drawn;
        for (index_t block = 0; block * kKeyBlock < c.rows; ++block) {
          drawn.append(array_of(far.draw(select_keys(c, found, block), block).keys));
        }
        py::dict result;
        result["near_blocks"] = found.near_blocks;
        result["retrieved"] = array_of(found.retrieved);
        result["has_far"] = found.has_far;
        result["heavy"] = array_of(found.heavy);
        result["lags"] = array_of(found.lags);
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

/// Shares of far keys, and norms of rows, (batch, heads, n); 0 for heads that are not listed.
py::tuple attend(const AnySelfAttention& any, const AnyCalibration& fitted, py::array& out,
                 py::object lse, const Heads& heads, int num_threads) {
  return std::visit(
      [&]<class T>(const SelfAttention<T>& attention) -> py::tuple {
        const auto& calibration = std::get<Calibration<T>>(fitted.held);
        const std::vector<py::ssize_t> shape{calibration.batch, calibration.query_heads,
                                             calibration.rows};
        auto far_share = make_array<T>(shape);
        auto norms = make_array<double>(shape);
        const auto y = output<T, 4>(out, "out");
        const auto l = optional_output<T, 3>(lse, "lse");
        const auto share = output<T, 3>(far_share, "far_share");
        const auto lengths = output<double, 3>(norms, "norms");
        if (heads) {  // some heads, or none
          std::fill_n(share.data, share.size(), T(0));
          std::fill_n(lengths.data, lengths.size(), 0.0);
        }
        if (!heads || heads->size() > 0)
          run(num_threads, [&](const Exec& exec) {
            calibrated_attention<T>(attention, calibration, y, l, share, lengths, listed(heads),
                                    exec);
          });
        return py::make_tuple(far_share, norms);
      },
      any.held);
}

py::array rows(const AnySelfAttention& any, const py::array& listed_rows, const Heads& heads,
               int num_threads) {
  return std::visit(
      [&]<class T>(const SelfAttention<T>& attention) -> py::array {
        const auto r = input<index_t, 2>(listed_rows, "rows");
        auto out = make_array<T>({r.shape[0], r.shape[1], any.arrays[2].shape(3)});
        const auto y = output<T, 3>(out, "out");
        if (r.shape[0] > 0)
          run(num_threads,
              [&](const Exec& exec) { exact_rows<T>(attention, r, y, listed(heads), exec); });
        return out;
      },
      any.held);
}

void blocks(const AnySelfAttention& any, const py::array_t<bool, py::array::c_style>& chosen,
            py::array& out, py::object lse, int num_threads) {
  std::visit(
      [&]<class T>(const SelfAttention<T>& attention) {
        const auto y = output<T, 4>(out, "out");
        const auto l = optional_output<T, 3>(lse, "lse");
        const std::vector<char> flags(chosen.data(), chosen.data() + chosen.size());
        run(num_threads, [&](const Exec& exec) { exact_blocks<T>(attention, flags, y, l, exec); });
      },
      any.held);
}

}  // namespace

void register_calibrate(py::module_& module) {
  using py::arg;
  py::class_<AnyCalibration>(module, "Calibration")
      .def("account", &account)
      .def("head", &head, arg("index"));
  py::class_<AnySelfAttention>(module, "SelfAttention")
      .def(py::init<py::array, py::array, py::array, double, int>(), arg("query"), arg("key"),
           arg("value"), arg("scale"), arg("num_threads"))
      .def("calibrate", &fit, arg("options"), arg("tol"), arg("num_threads"))
      .def("approximate", &attend, arg("calibration"), arg("out"), arg("lse").none(true),
           arg("heads").none(true), arg("num_threads"))
      .def("exact_rows", &rows, arg("rows"), arg("heads").none(true), arg("num_threads"))
      .def("exact_blocks", &blocks, arg("blocks"), arg("out"), arg("lse").none(true),
           arg("num_threads"));
}

}  // namespace convbasis::bindings
