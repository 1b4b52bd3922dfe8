#include "bindings/ndarray.h"

namespace convbasis::bindings {
namespace {

void translate(std::exception_ptr pending) {
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const InvalidArgument& error) {
    py::set_error(PyExc_ValueError, error.what());
  } catch (const Unsupported& error) {
    py::set_error(PyExc_NotImplementedError, error.what());
  } catch (const BackendError& error) {
    py::set_error(PyExc_RuntimeError, error.what());
  }
}

}  // namespace
}  // namespace convbasis::bindings

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  using namespace convbasis::bindings;
  module.doc() = "Compiled core of convbasis. The public API is the package, not this module.";
  pybind11::register_exception_translator(&translate);
  register_attention(module);
  register_backward(module);
  register_basis(module);
  register_calibrate(module);
  register_cost(module);
  register_cuda(module);
  register_device_memory(module);
  register_info(module);
  register_lowrank(module);
  register_polynomial(module);
  register_sparsify(module);
}
