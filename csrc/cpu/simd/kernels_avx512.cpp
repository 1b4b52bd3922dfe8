#define CONVBASIS_SIMD_BUILD "avx512"
#define CONVBASIS_SIMD_ARCH xsimd::avx512bw
#define CONVBASIS_SIMD_REGISTERS 32

#include "cpu/simd/kernels_impl.h"

namespace convbasis {

const Kernels<float>& kernels_avx512_float() { return kTable<float>; }
const Kernels<double>& kernels_avx512_double() { return kTable<double>; }

}  // namespace convbasis
