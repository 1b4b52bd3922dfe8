#include "cpu/simd/kernels.h"

namespace convbasis {

const Kernels<float>& kernels_baseline_float();
const Kernels<double>& kernels_baseline_double();
#if defined(CONVBASIS_X86_BUILDS)
const Kernels<float>& kernels_avx2_float();
const Kernels<double>& kernels_avx2_double();
const Kernels<float>& kernels_avx512_float();
const Kernels<double>& kernels_avx512_double();

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace
#endif

template <>
std::vector<const Kernels<float>*> available_kernels() {
  std::vector<const Kernels<float>*> all{&kernels_baseline_float()};
#if defined(CONVBASIS_X86_BUILDS)
  if (has_avx2()) all.push_back(&kernels_avx2_float());
  if (has_avx512()) all.push_back(&kernels_avx512_float());
#endif
  return all;
}

template <>
std::vector<const Kernels<double>*> available_kernels() {
  std::vector<const Kernels<double>*> all{&kernels_baseline_double()};
#if defined(CONVBASIS_X86_BUILDS)
  if (has_avx2()) all.push_back(&kernels_avx2_double());
  if (has_avx512()) all.push_back(&kernels_avx512_double());
#endif
  return all;
}

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T>& fastest = *available_kernels<T>().back();
  return fastest;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace convbasis
