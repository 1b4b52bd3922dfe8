#define CONVBASIS_SIMD_BUILD "avx2"
#define CONVBASIS_SIMD_ARCH xsimd::fma3<xsimd::avx2>
#define CONVBASIS_SIMD_REGISTERS 16

#include "cpu/simd/kernels_impl.h"

namespace convbasis {

const Kernels<float>& kernels_avx2_float() { return kTable<float>; }
const Kernels<double>& kernels_avx2_double() { return kTable<double>; }

}  // namespace convbasis
