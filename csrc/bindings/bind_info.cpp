#include "bindings/ndarray.h"
#include "convbasis/device.h"
#include "convbasis/version.h"
#include "cpu/blas.h"
#include "cpu/simd/kernels.h"

namespace convbasis::bindings {
namespace {

py::dict build_info() {
  py::list simd;
  for (const Kernels<float>* build : available_kernels<float>())
    simd.append(py::str(std::string(build->name)));
  py::dict info;
  info["version"] = CONVBASIS_VERSION;
  info["compiler"] = __VERSION__;
  info["cxx_standard"] = __cplusplus;
  info["simd_available"] = simd;
  info["simd"] = py::str(std::string(kernels<float>().name));
  info["blas"] = blas::description();
  info["fft"] = "radix 8 and 4 across channels, twiddle factors of PocketFFT";
  info["cuda"] = cuda_available();
  info["cuda_missing"] = cuda::why_unavailable();
  return info;
}

}  // namespace

void register_info(py::module_& module) { module.def("build_info", &build_info); }

}  // namespace convbasis::bindings
