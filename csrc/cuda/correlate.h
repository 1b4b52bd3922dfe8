#pragma once

#include "cuda/element.h"
#include "cuda/gpu_schedule.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

/// out[t] of strip r = sum over j in strip r of x[j] . y[j + t], for the lags of all strips: the
/// adjoint of multiply_strips in its kernels, by the same schedule. x and y as seen by flat heads;
/// out (all heads, most, rows), of which places without a lag are not written.
///
/// The blocks on the diagonal are products of tiles: n (diagonal + 64) channels FLOP a head, of
/// which each number is read diagonal / 64 times, from a cache but for the first. A level gathers
/// and transforms pieces of x and blocks of y as multiply_strips does (7 numbers moved for each of
/// their rows and channels), sums 8 FLOP a pair of slots, frequency and channel, and transforms one
/// sum a window back, so that nothing of the size of an output is written.
template <class T>
void correlate_strips(const Strips<T>& strips, const Schedule& schedule, const Array<T>& x,
                      const Array<T>& y, T* out, index_t workspace, const Stream& stream);

}  // namespace convbasis::cuda
