#include "cuda/gemm.h"

namespace convbasis::cuda {
namespace {

template <class T>
T product(T a, T b) {
  return a * b;
}
template <class T>
Complex<T> product(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>
T sum(T a, T b) {
  return a + b;
}
template <class T>
Complex<T> sum(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}

}  // namespace

template <class T, class Real>
void multiply(const Stream&, index_t m, index_t n, index_t k, Real alpha, Matrices<const T> a,
              Matrices<const T> b, bool transpose_b, Real beta, Matrices<T> c, index_t batch) {
  // What cuBLAS refuses.
  if (a.stride < k || b.stride < (transpose_b ? k : n) || c.stride < n || a.step < 0 || b.step < 0)
    throw_backend("cublasGemmStridedBatched", "an invalid value");
  for (index_t item = 0; item < batch; ++item) {
    const T* left = a.data + item * a.step;
    const T* right = b.data + item * b.step;
    for (index_t i = 0; i < m; ++i) {
      for (index_t j = 0; j < n; ++j) {
        T total{};
        for (index_t l = 0; l < k; ++l)
          total =
              sum(total, product(left[i * a.stride + l],
                                 transpose_b ? right[j * b.stride + l] : right[l * b.stride + j]));
        T& to = c.data[item * c.step + i * c.stride + j];
        const T scaled = product(T{alpha}, total);
        to = beta == Real(0) ? scaled : sum(scaled, product(T{beta}, to));
      }
    }
  }
}

#define CONVBASIS_INSTANTIATE(T, Real)                                                      \
  template void multiply(const Stream&, index_t, index_t, index_t, Real, Matrices<const T>, \
                         Matrices<const T>, bool, Real, Matrices<T>, index_t);
CONVBASIS_INSTANTIATE(float, float)
CONVBASIS_INSTANTIATE(double, double)
CONVBASIS_INSTANTIATE(Complex<float>, float)
CONVBASIS_INSTANTIATE(Complex<double>, double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
