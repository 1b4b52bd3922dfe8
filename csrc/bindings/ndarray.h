#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "convbasis/basis.h"
#include "convbasis/error.h"
#include "convbasis/report.h"
#include "convbasis/types.h"

namespace convbasis::bindings {

namespace py = pybind11;

/// Exact dtype, exact rank, any strides that are whole elements: a view, never a copy or a cast.
template <class T, int N>
View<const T, N> input(const py::array& array, const char* name) {
  if (!py::isinstance<py::array_t<T>>(array))
    throw py::type_error("[_core] " + std::string(name) + " has dtype " +
                         py::str(array.dtype()).cast<std::string>() + "; expected " +
                         py::str(py::dtype::of<T>()).cast<std::string>());
  if (array.ndim() != N)
    throw InvalidArgument("[_core] " + std::string(name) + " has " + std::to_string(array.ndim()) +
                          " dimensions; expected " + std::to_string(N));
  View<const T, N> view{static_cast<const T*>(array.data()), {}, {}};
  for (int axis = 0; axis < N; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    view.shape[a] = array.shape(axis);
    const py::ssize_t bytes = array.strides(axis);
    if (view.shape[a] > 1 && bytes % static_cast<py::ssize_t>(sizeof(T)) != 0)
      throw InvalidArgument("[_core] " + std::string(name) + " has a stride of " +
                            std::to_string(bytes) + " bytes; expected whole elements");
    view.strides[a] = bytes / static_cast<py::ssize_t>(sizeof(T));
  }
  if (view.size() > 0 && reinterpret_cast<std::uintptr_t>(view.data) % alignof(T) != 0)
    throw InvalidArgument("[_core] " + std::string(name) + " is not aligned to its elements");
  return view;
}

/// The same for an array that is written: writeable, and no two elements at one place.
template <class T, int N>
View<T, N> output(py::array& array, const char* name) {
  const View<const T, N> view = input<T, N>(array, name);
  if (!array.writeable())
    throw InvalidArgument("[_core] " + std::string(name) + " is read-only; expected writeable");
  for (std::size_t axis = 0; axis < N; ++axis)
    if (view.size() > 0 && view.shape[axis] > 1 && view.strides[axis] == 0)
      throw InvalidArgument("[_core] " + std::string(name) +
                            " has stride 0; expected distinct elements");
  return {const_cast<T*>(view.data), view.shape, view.strides};
}

template <class T, int N>
View<T, N> optional_output(py::object& array, const char* name) {
  if (array.is_none()) return {};
  auto concrete = py::cast<py::array>(array);
  return output<T, N>(concrete, name);
}

/// Flat head numbers to compute; None is all.
using Heads = std::optional<py::array_t<index_t, py::array::c_style>>;

inline std::span<const index_t> listed(const Heads& heads) {
  if (!heads) return {};
  return {heads->data(), static_cast<std::size_t>(heads->size())};
}

/// Calls f(T()) with the type of the array: float or double.
template <class F>
auto dispatch(const py::array& array, const char* name, F&& f) {
  if (py::isinstance<py::array_t<float>>(array)) return f(float());
  if (py::isinstance<py::array_t<double>>(array)) return f(double());
  throw py::type_error("[_core] " + std::string(name) + " has dtype " +
                       py::str(array.dtype()).cast<std::string>() +
                       "; expected float32 or float64");
}

/// Lets Ctrl-C end a long call: asks Python for pending signals, on the calling thread.
class Signals final : public Interrupt {
 public:
  bool requested() override {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  }
};

/// Runs f(exec) without the GIL. When a signal handler raised, its exception goes on.
template <class F>
auto run(int num_threads, F&& f) {
  Signals signals;
  try {
    const py::gil_scoped_release nogil;
    return f(Exec{num_threads, &signals});
  } catch (...) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw;
  }
}

/// starts, num_bases, kernels, num_columns
using BasisTuple = std::tuple<py::array, py::array, py::array, index_t>;

template <class T>
BasisView<T> basis_view(const BasisTuple& basis) {
  const auto& [starts, num_bases, kernels, num_columns] = basis;
  return {input<index_t, 3>(starts, "starts"), input<index_t, 2>(num_bases, "num_bases"),
          input<T, 4>(kernels, "kernels"), num_columns};
}

inline py::dict to_dict(const StageSeconds& s) {
  py::dict seconds;
  seconds["exp"] = s.exp;
  seconds["transform"] = s.transform;
  seconds["products"] = s.products;
  seconds["inverse"] = s.inverse;
  seconds["diagonal"] = s.diagonal;
  seconds["normalize"] = s.normalize;
  seconds["rows"] = s.rows;
  return seconds;
}

/// A fresh C-contiguous array.
template <class T>
py::array_t<T> make_array(std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape));
}

void register_attention(py::module_& module);
void register_backward(py::module_& module);
void register_basis(py::module_& module);
void register_calibrate(py::module_& module);
void register_cost(py::module_& module);
void register_cuda(py::module_& module);
void register_info(py::module_& module);
void register_device_memory(py::module_& module);
void register_lowrank(py::module_& module);
void register_polynomial(py::module_& module);
void register_sparsify(py::module_& module);

}  // namespace convbasis::bindings
