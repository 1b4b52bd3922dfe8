#pragma once

#include "cuda/fft.h"

namespace convbasis::cuda {

/// Row-major matrices, one after another: rows `stride` elements apart, at least their length,
/// matrices `step`, not negative.
template <class T>
struct Matrices {
  T* data;
  index_t stride, step;
};

/// C (m x n) = alpha * A (m x k) B (k x n) + beta * C for each of `batch` triples; with
/// transpose_b, B is (n x k). T is float, double or Complex of one of them. In full precision:
/// float is not rounded to the tensor cores' types.
template <class T, class Real>
void multiply(const Stream& stream, index_t m, index_t n, index_t k, Real alpha,
              Matrices<const T> a, Matrices<const T> b, bool transpose_b, Real beta, Matrices<T> c,
              index_t batch);

}  // namespace convbasis::cuda
