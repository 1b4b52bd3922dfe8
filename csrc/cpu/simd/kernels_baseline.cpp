#define CONVBASIS_SIMD_BUILD "baseline"
#define CONVBASIS_SIMD_ARCH xsimd::default_arch
#if defined(__aarch64__)
#define CONVBASIS_SIMD_REGISTERS 32
#else
#define CONVBASIS_SIMD_REGISTERS 16
#endif

#include "cpu/simd/kernels_impl.h"

namespace convbasis {

const Kernels<float>& kernels_baseline_float() { return kTable<float>; }
const Kernels<double>& kernels_baseline_double() { return kTable<double>; }

}  // namespace convbasis
