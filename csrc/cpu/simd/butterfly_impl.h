// Included by fft_impl.h: transforms of a few points in registers.

#include <xsimd/xsimd.hpp>

namespace convbasis {
namespace {

/// re, im become their transform of R points, y_q = sum over m of x_m exp(2 pi i m q / R). With re
/// and im exchanged it is the inverse, times R.
template <class V>
XSIMD_INLINE void transform(V (&re)[4], V (&im)[4]) {
  const V ar = re[0] + re[2], ai = im[0] + im[2], br = re[0] - re[2], bi = im[0] - im[2];
  const V cr = re[1] + re[3], ci = im[1] + im[3], dr = re[1] - re[3], di = im[1] - im[3];
  re[0] = ar + cr, im[0] = ai + ci;
  re[1] = br - di, im[1] = bi + dr;
  re[2] = ar - cr, im[2] = ai - ci;
  re[3] = br + di, im[3] = bi - dr;
}

template <class V>
XSIMD_INLINE void transform(V (&re)[8], V (&im)[8]) {
  V er[4] = {re[0], re[2], re[4], re[6]}, ei[4] = {im[0], im[2], im[4], im[6]};
  V or_[4] = {re[1], re[3], re[5], re[7]}, oi[4] = {im[1], im[3], im[5], im[7]};
  transform(er, ei);
  transform(or_, oi);
  const V half(static_cast<typename V::value_type>(0.70710678118654752440L));
  const V pr = or_[1] - oi[1], pi = or_[1] + oi[1];  // times (1 + i) / sqrt 2
  const V mr = or_[3] + oi[3], mi = oi[3] - or_[3];  // times (-1 + i) / sqrt 2, negated
  re[0] = er[0] + or_[0], im[0] = ei[0] + oi[0];
  re[4] = er[0] - or_[0], im[4] = ei[0] - oi[0];
  re[1] = xsimd::fma(half, pr, er[1]), im[1] = xsimd::fma(half, pi, ei[1]);
  re[5] = xsimd::fnma(half, pr, er[1]), im[5] = xsimd::fnma(half, pi, ei[1]);
  re[2] = er[2] - oi[2], im[2] = ei[2] + or_[2];
  re[6] = er[2] + oi[2], im[6] = ei[2] - or_[2];
  re[3] = xsimd::fnma(half, mr, er[3]), im[3] = xsimd::fnma(half, mi, ei[3]);
  re[7] = xsimd::fma(half, mr, er[3]), im[7] = xsimd::fma(half, mi, ei[3]);
}

}  // namespace
}  // namespace convbasis
