#include <algorithm>
#include <type_traits>

#include "bindings/ndarray.h"
#include "bindings/polynomials.h"
#include "bindings/strip_starts.h"
#include "convbasis/attention.h"
#include "convbasis/cuda.h"
#include "convbasis/device.h"

namespace convbasis::bindings {
namespace {

/// An array on a device: address, shape, strides in elements, name of the dtype.
using DeviceTuple =
    std::tuple<std::uintptr_t, std::vector<index_t>, std::vector<index_t>, std::string>;
/// starts and num_bases on the host, kernels on the device, num_columns
using DeviceBasis = std::tuple<py::array, py::array, DeviceTuple, index_t>;
/// device, cudaStream_t
using StreamTuple = std::tuple<int, std::uintptr_t>;

/// The dtype of elements of type E, const or not.
template <class E>
constexpr const char* name_of() {
  using T = std::remove_const_t<E>;
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, Float16>) return "float16";
  if constexpr (std::is_same_v<T, BFloat16>) return "bfloat16";
}

template <class E, int N>
View<E, N> device_view(const DeviceTuple& array, const char* name) {
  const auto& [address, shape, strides, dtype] = array;
  if (dtype != name_of<E>())
    throw py::type_error("[_core] " + std::string(name) + " has dtype " + dtype + "; expected " +
                         name_of<E>());
  if (shape.size() != N || strides.size() != N)
    throw InvalidArgument("[_core] " + std::string(name) + " has " + std::to_string(shape.size()) +
                          " dimensions; expected " + std::to_string(N));
  View<E, N> view{reinterpret_cast<E*>(address), {}, {}};
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  std::copy(strides.begin(), strides.end(), view.strides.begin());
  if (view.size() > 0 && address % alignof(E) != 0)
    throw InvalidArgument("[_core] " + std::string(name) + " is not aligned to its elements");
  return view;
}

template <class E, int N>
View<E, N> optional_view(const std::optional<DeviceTuple>& array, const char* name) {
  return array ? device_view<E, N>(*array, name) : View<E, N>{};
}

template <class T>
BasisView<T> device_basis(const DeviceBasis& basis) {
  const auto& [starts, num_bases, kernels, num_columns] = basis;
  return {input<index_t, 3>(starts, "starts"), input<index_t, 2>(num_bases, "num_bases"),
          device_view<T, 4>(kernels, "kernels"), num_columns};
}

template <class T>
std::optional<BasisView<T>> optional_basis(const std::optional<DeviceBasis>& basis) {
  if (!basis) return std::nullopt;
  return device_basis<T>(*basis);
}

/// The address of what holds a value, null for what holds none.
template <class T>
const T* address_of(const std::optional<T>& value) {
  return value ? &*value : nullptr;
}

cuda::Stream stream_of(const StreamTuple& stream) {
  return {std::get<0>(stream), reinterpret_cast<void*>(std::get<1>(stream))};
}

/// Calls f(E()) with the type of the elements.
template <class F>
void dispatch_device(const DeviceTuple& array, const char* name, F&& f) {
  const std::string& dtype = std::get<3>(array);
  if (dtype == name_of<float>()) return f(float());
  if (dtype == name_of<double>()) return f(double());
  if (dtype == name_of<Float16>()) return f(Float16());
  if (dtype == name_of<BFloat16>()) return f(BFloat16());
  throw py::type_error("[_core] " + std::string(name) + " has dtype " + dtype +
                       "; expected float32, float64, float16 or bfloat16");
}

void matmul(const DeviceBasis& basis, const DeviceTuple& x, const DeviceTuple& out, bool transpose,
            const StreamTuple& stream) {
  dispatch_device(x, "x", [&]<class E>(E) {
    const auto matrices = device_basis<cuda::Compute<E>>(basis);
    const auto in = device_view<const E, 4>(x, "x");
    const auto y = device_view<E, 4>(out, "out");
    const py::gil_scoped_release nogil;
    cuda::conv_matmul<E>(matrices, in, y, transpose, stream_of(stream));
  });
}

void sums_of(const DeviceBasis& basis, const DeviceTuple& out, const StreamTuple& stream) {
  const auto sums = [&]<class T>(T) {
    const auto matrices = device_basis<T>(basis);
    const auto y = device_view<T, 3>(out, "out");
    const py::gil_scoped_release nogil;
    cuda::row_sums<T>(matrices, y, stream_of(stream));
  };
  std::get<3>(out) == name_of<double>() ? sums(double()) : sums(float());
}

py::tuple starts_of(const DeviceTuple& query, const DeviceTuple& key, double scale,
                    std::optional<index_t> num_bases, index_t window, double delta, double epsilon,
                    bool bisect, index_t value_dim, const StreamTuple& stream) {
  const auto search = bisect ? RecoverOptions::Search::bisect : RecoverOptions::Search::scan;
  const RecoverOptions options{num_bases, window, delta, epsilon, search, value_dim};
  StripStarts found;
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const py::gil_scoped_release nogil;
    found = cuda::recover_starts<E>(q, k, scale, options, stream_of(stream));
  });
  return starts_tuple(found);
}

void fill_kernels(const DeviceTuple& query, const DeviceTuple& key, const py::array& starts,
                  const py::array& num_bases, const DeviceTuple& kernels, double scale,
                  const StreamTuple& stream) {
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const auto s = input<index_t, 3>(starts, "starts");
    const auto counts = input<index_t, 2>(num_bases, "num_bases");
    const auto to = device_view<cuda::Compute<E>, 4>(kernels, "kernels");
    const py::gil_scoped_release nogil;
    cuda::recover_kernels<E>(q, k, s, counts, scale, to, stream_of(stream));
  });
}

void attend(const DeviceBasis& lower, const std::optional<DeviceBasis>& upper,
            const DeviceTuple& value, const DeviceTuple& out, const std::optional<DeviceTuple>& lse,
            const Heads& heads, const StreamTuple& stream) {
  if (heads && heads->size() == 0) return;
  dispatch_device(value, "value", [&]<class E>(E) {
    const auto logits = device_basis<cuda::Compute<E>>(lower);
    const auto above = optional_basis<cuda::Compute<E>>(upper);
    const auto v = device_view<const E, 4>(value, "value");
    const auto y = device_view<E, 4>(out, "out");
    const auto l = optional_view<cuda::Compute<E>, 3>(lse, "lse");
    const py::gil_scoped_release nogil;
    cuda::conv_attention<E>(logits, address_of(above), v, y, l, {}, listed(heads),
                            stream_of(stream));
  });
}

void attend_exactly(const DeviceTuple& query, const DeviceTuple& key, const DeviceTuple& value,
                    const DeviceTuple& out, const std::optional<DeviceTuple>& lse, double scale,
                    bool is_causal, const Heads& heads, const StreamTuple& stream) {
  if (heads && heads->size() == 0) return;
  const AttentionOptions options{.scale = scale, .is_causal = is_causal};
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const auto v = device_view<const E, 4>(value, "value");
    const auto y = device_view<E, 4>(out, "out");
    const auto l = optional_view<cuda::Compute<E>, 3>(lse, "lse");
    const py::gil_scoped_release nogil;
    cuda::exact_attention<E>(q, k, v, y, l, options, listed(heads), stream_of(stream));
  });
}

py::tuple range_of(const DeviceTuple& query, const DeviceTuple& key, double scale, bool is_causal,
                   const StreamTuple& stream) {
  const AttentionOptions options{.scale = scale, .is_causal = is_causal};
  cuda::LogitRange range;
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const py::gil_scoped_release nogil;
    range = cuda::logit_range<E>(q, k, options, stream_of(stream));
  });
  const auto array = [](const std::vector<double>& numbers) {
    return Numbers(static_cast<py::ssize_t>(numbers.size()), numbers.data());
  };
  return py::make_tuple(array(range.centre), array(range.radius));
}

void attend_by_polynomials(const DeviceTuple& query, const DeviceTuple& key,
                           const DeviceTuple& value, const DeviceTuple& out,
                           const std::optional<DeviceTuple>& lse, const Polynomials& polynomials,
                           double scale, bool is_causal, const Heads& heads,
                           const StreamTuple& stream) {
  if (heads && heads->size() == 0) return;
  const AttentionOptions options{.scale = scale, .is_causal = is_causal};
  const std::vector<HeadPolynomial> of_heads = polynomials_of(polynomials);
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const auto v = device_view<const E, 4>(value, "value");
    const auto y = device_view<E, 4>(out, "out");
    const auto l = optional_view<cuda::Compute<E>, 3>(lse, "lse");
    const py::gil_scoped_release nogil;
    cuda::polynomial_attention<E>(q, k, v, y, l, of_heads, options, listed(heads),
                                  stream_of(stream));
  });
}

void differentiate_exactly(const DeviceTuple& query, const DeviceTuple& key,
                           const DeviceTuple& value, const DeviceTuple& grad_output,
                           const DeviceTuple& grad_query, const DeviceTuple& grad_key,
                           const DeviceTuple& grad_value, double scale, bool is_causal,
                           const Heads& heads, const StreamTuple& stream) {
  if (heads && heads->size() == 0) return;
  const AttentionOptions options{.scale = scale, .is_causal = is_causal};
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const auto v = device_view<const E, 4>(value, "value");
    const auto dy = device_view<const E, 4>(grad_output, "grad_output");
    const auto dq = device_view<E, 4>(grad_query, "grad_query");
    const auto dk = device_view<E, 4>(grad_key, "grad_key");
    const auto dv = device_view<E, 4>(grad_value, "grad_value");
    const py::gil_scoped_release nogil;
    cuda::exact_attention_backward<E>(q, k, v, dy, dq, dk, dv, options, listed(heads),
                                      stream_of(stream));
  });
}

void differentiate_polynomials(const DeviceTuple& query, const DeviceTuple& key,
                               const DeviceTuple& value, const DeviceTuple& grad_output,
                               const DeviceTuple& grad_query, const DeviceTuple& grad_key,
                               const DeviceTuple& grad_value, const Polynomials& polynomials,
                               double scale, bool is_causal, const Heads& heads,
                               const StreamTuple& stream) {
  if (heads && heads->size() == 0) return;
  const AttentionOptions options{.scale = scale, .is_causal = is_causal};
  const std::vector<HeadPolynomial> of_heads = polynomials_of(polynomials);
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const auto v = device_view<const E, 4>(value, "value");
    const auto dy = device_view<const E, 4>(grad_output, "grad_output");
    const auto dq = device_view<E, 4>(grad_query, "grad_query");
    const auto dk = device_view<E, 4>(grad_key, "grad_key");
    const auto dv = device_view<E, 4>(grad_value, "grad_value");
    const py::gil_scoped_release nogil;
    cuda::polynomial_attention_backward<E>(q, k, v, dy, dq, dk, dv, of_heads, options,
                                           listed(heads), stream_of(stream));
  });
}

void conv_backward(const DeviceBasis& lower, const std::optional<DeviceBasis>& upper,
                   const DeviceTuple& query, const DeviceTuple& key, const DeviceTuple& value,
                   const DeviceTuple& grad_output, const DeviceTuple& grad_query,
                   const DeviceTuple& grad_key, const DeviceTuple& grad_value, double scale,
                   bool through_entries, const Heads& heads, const StreamTuple& stream) {
  if (heads && heads->size() == 0) return;
  dispatch_device(query, "query", [&]<class E>(E) {
    const auto logits = device_basis<cuda::Compute<E>>(lower);
    const auto above = optional_basis<cuda::Compute<E>>(upper);
    const auto q = device_view<const E, 4>(query, "query");
    const auto k = device_view<const E, 4>(key, "key");
    const auto v = device_view<const E, 4>(value, "value");
    const auto dy = device_view<const E, 4>(grad_output, "grad_output");
    const auto dq = device_view<E, 4>(grad_query, "grad_query");
    const auto dk = device_view<E, 4>(grad_key, "grad_key");
    const auto dv = device_view<E, 4>(grad_value, "grad_value");
    const Gradient gradient = through_entries ? Gradient::attention : Gradient::basis;
    const py::gil_scoped_release nogil;
    cuda::conv_attention_backward<E>(logits, address_of(above), q, k, v, dy, dq, dk, dv, scale,
                                     gradient, {}, listed(heads), stream_of(stream));
  });
}

int device_of(std::uintptr_t address) {
  return cuda::device_of(reinterpret_cast<const void*>(address));
}

void clear(std::uintptr_t address, std::size_t bytes, const StreamTuple& stream) {
  const py::gil_scoped_release nogil;
  cuda::clear(stream_of(stream), reinterpret_cast<void*>(address), bytes);
}

}  // namespace

void register_cuda(py::module_& module) {
  using py::arg;
  module.def("cuda_why_unavailable", &cuda::why_unavailable);
  module.def("cuda_device_of", &device_of, arg("address"));
  module.def(
      "cuda_wait", [](const StreamTuple& stream) { cuda::wait(stream_of(stream)); }, arg("stream"),
      py::call_guard<py::gil_scoped_release>());
  module.def("cuda_clear", &clear, arg("address"), arg("num_bytes"), arg("stream"));
  module.def("cuda_conv_matmul", &matmul, arg("basis"), arg("x"), arg("out"), arg("transpose"),
             arg("stream"));
  module.def("cuda_row_sums", &sums_of, arg("basis"), arg("out"), arg("stream"));
  module.def("cuda_recover_starts", &starts_of, arg("query"), arg("key"), arg("scale"),
             arg("num_bases").none(true), arg("window"), arg("delta"), arg("epsilon"),
             arg("bisect"), arg("value_dim"), arg("stream"));
  module.def("cuda_recover_kernels", &fill_kernels, arg("query"), arg("key"), arg("starts"),
             arg("num_bases"), arg("kernels"), arg("scale"), arg("stream"));
  module.def("cuda_conv_attention", &attend, arg("lower"), arg("upper").none(true), arg("value"),
             arg("out"), arg("lse").none(true), arg("heads").none(true), arg("stream"));
  module.def("cuda_exact_attention", &attend_exactly, arg("query"), arg("key"), arg("value"),
             arg("out"), arg("lse").none(true), arg("scale"), arg("is_causal"),
             arg("heads").none(true), arg("stream"));
  module.def("cuda_logit_range", &range_of, arg("query"), arg("key"), arg("scale"),
             arg("is_causal"), arg("stream"));
  module.def("cuda_polynomial_attention", &attend_by_polynomials, arg("query"), arg("key"),
             arg("value"), arg("out"), arg("lse").none(true), arg("polynomials"), arg("scale"),
             arg("is_causal"), arg("heads").none(true), arg("stream"));
  module.def("cuda_exact_attention_backward", &differentiate_exactly, arg("query"), arg("key"),
             arg("value"), arg("grad_output"), arg("grad_query"), arg("grad_key"),
             arg("grad_value"), arg("scale"), arg("is_causal"), arg("heads").none(true),
             arg("stream"));
  module.def("cuda_polynomial_attention_backward", &differentiate_polynomials, arg("query"),
             arg("key"), arg("value"), arg("grad_output"), arg("grad_query"), arg("grad_key"),
             arg("grad_value"), arg("polynomials"), arg("scale"), arg("is_causal"),
             arg("heads").none(true), arg("stream"));
  module.def("cuda_conv_attention_backward", &conv_backward, arg("lower"), arg("upper").none(true),
             arg("query"), arg("key"), arg("value"), arg("grad_output"), arg("grad_query"),
             arg("grad_key"), arg("grad_value"), arg("scale"), arg("through_entries"),
             arg("heads").none(true), arg("stream"));
}

}  // namespace convbasis::bindings
