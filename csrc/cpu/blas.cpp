#include "cpu/blas.h"

#include <cblas.h>

// The PyPI build of OpenBLAS puts scipy_ before every name.
#if defined(CONVBASIS_BLAS_SCIPY)
#define CONVBASIS_BLAS_NAME(name) scipy_##name
#else
#define CONVBASIS_BLAS_NAME(name) name
#endif

namespace convbasis::blas {
namespace {

/// Work is divided outside BLAS, tile by tile: its own threads would only get in the way. The
/// library beside the extension is a private copy, so nobody else is affected.
void run_single_threaded() {
#if defined(CONVBASIS_BLAS_SCIPY)
  static const bool done = [] {
    scipy_openblas_set_num_threads(1);
    return true;
  }();
  (void)done;
#endif
}

void gemm(CBLAS_TRANSPOSE transpose_a, CBLAS_TRANSPOSE transpose_b, index_t m, index_t n, index_t k,
          float alpha, Matrix<const float> a, Matrix<const float> b, float beta, Matrix<float> c) {
  CONVBASIS_BLAS_NAME(cblas_sgemm)
  (CblasRowMajor, transpose_a, transpose_b, static_cast<int>(m), static_cast<int>(n),
   static_cast<int>(k), alpha, a.data, static_cast<int>(a.stride), b.data,
   static_cast<int>(b.stride), beta, c.data, static_cast<int>(c.stride));
}

void gemm(CBLAS_TRANSPOSE transpose_a, CBLAS_TRANSPOSE transpose_b, index_t m, index_t n, index_t k,
          double alpha, Matrix<const double> a, Matrix<const double> b, double beta,
          Matrix<double> c) {
  CONVBASIS_BLAS_NAME(cblas_dgemm)
  (CblasRowMajor, transpose_a, transpose_b, static_cast<int>(m), static_cast<int>(n),
   static_cast<int>(k), alpha, a.data, static_cast<int>(a.stride), b.data,
   static_cast<int>(b.stride), beta, c.data, static_cast<int>(c.stride));
}

}  // namespace

template <class T>
void multiply(index_t m, index_t n, index_t k, T alpha, Matrix<const T> a, Matrix<const T> b,
              T beta, Matrix<T> c) {
  if (m <= 0 || n <= 0) return;
  run_single_threaded();
  gemm(CblasNoTrans, CblasNoTrans, m, n, k, alpha, a, b, beta, c);
}

template <class T>
void multiply_transposed(index_t m, index_t n, index_t k, T alpha, Matrix<const T> a,
                         Matrix<const T> b, Matrix<T> c) {
  if (m <= 0 || n <= 0) return;
  run_single_threaded();
  gemm(CblasNoTrans, CblasTrans, m, n, k, alpha, a, b, T(0), c);
}

template <class T>
void add_transposed_product(index_t m, index_t n, index_t k, Matrix<const T> a, Matrix<const T> b,
                            Matrix<T> c) {
  if (m <= 0 || n <= 0) return;
  run_single_threaded();
  gemm(CblasTrans, CblasNoTrans, m, n, k, T(1), a, b, T(1), c);
}

const char* description() {
#if defined(CONVBASIS_BLAS_SCIPY)
  return scipy_openblas_get_config();
#else
  return "system CBLAS";
#endif
}

template void multiply(index_t, index_t, index_t, float, Matrix<const float>, Matrix<const float>,
                       float, Matrix<float>);
template void multiply(index_t, index_t, index_t, double, Matrix<const double>,
                       Matrix<const double>, double, Matrix<double>);
template void multiply_transposed(index_t, index_t, index_t, float, Matrix<const float>,
                                  Matrix<const float>, Matrix<float>);
template void multiply_transposed(index_t, index_t, index_t, double, Matrix<const double>,
                                  Matrix<const double>, Matrix<double>);
template void add_transposed_product(index_t, index_t, index_t, Matrix<const float>,
                                     Matrix<const float>, Matrix<float>);
template void add_transposed_product(index_t, index_t, index_t, Matrix<const double>,
                                     Matrix<const double>, Matrix<double>);

}  // namespace convbasis::blas
