#include "bindings/ndarray.h"

// For tests alone: the GPU's functions of _core on the emulated device, whose memory is the host's.
PYBIND11_MODULE(_emulated, module) {
  pybind11::module_::import(
      "convbasis._core");  // whose translator of exceptions serves all modules
  convbasis::bindings::register_cuda(module);
  convbasis::bindings::register_device_memory(module);
}
