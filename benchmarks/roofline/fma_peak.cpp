// The FMA peak of one instruction set: compiled once for each, with its flags, ROOFLINE_BUILD its
// name and ROOFLINE_BYTES the width of its vectors.
#include "peaks.h"

#define ROOFLINE_JOIN(a, b) a##b
#define ROOFLINE_NAME(prefix, build) ROOFLINE_JOIN(prefix, build)

namespace roofline {
namespace {

// Two multiply-adds a cycle that each take four are eight in flight; twelve and their two operands
// fit 16 registers.
constexpr int kChains = 12;

template <class T>
double run_chains(long steps, T factor, T term) {
  typedef T Vector [[gnu::vector_size(ROOFLINE_BYTES)]];
  constexpr int kLanes = ROOFLINE_BYTES / sizeof(T);
  const Vector a = factor - Vector{}, b = term - Vector{};
  Vector chains[kChains];
  for (int c = 0; c < kChains; ++c) chains[c] = a * static_cast<T>(c);
  for (long s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (Vector& chain : chains) chain = chain * a + b;
  }
  Vector sum{};
  for (const Vector& chain : chains) sum += chain;
  volatile T sink = sum[0];
  (void)sink;
  return 2.0 * kLanes * kChains * static_cast<double>(steps);
}

}  // namespace

FmaChains ROOFLINE_NAME(fma_chains_, ROOFLINE_BUILD)() {
  return {run_chains<float>, run_chains<double>};
}

}  // namespace roofline
