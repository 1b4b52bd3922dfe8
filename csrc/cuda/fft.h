#pragma once

#include "cuda/runtime.h"

namespace convbasis::cuda {

template <class T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im = 0;
};

/// Transforms down the columns of (length, batch) reals, giving (length / 2 + 1, batch) complex
/// numbers, neither scaled. Neighbouring columns lie side by side, as channels do. Plans are kept
/// by (device, type, direction, length, batch); their work areas belong to the call.
template <class T>
void transform(const Stream& stream, index_t length, index_t batch, const T* in, Complex<T>* out);

/// The way back, times length. The spectra are destroyed.
template <class T>
void transform_back(const Stream& stream, index_t length, index_t batch, Complex<T>* in, T* out);

}  // namespace convbasis::cuda
