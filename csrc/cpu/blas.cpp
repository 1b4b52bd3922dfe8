#include "cpu/blas.h"

#include <cblas.h>

#include <cstddef>
#include <vector>

// The PyPI build of OpenBLAS puts scipy_ before every name.
#if defined(CONVBASIS_BLAS_SCIPY)
#define CONVBASIS_BLAS_NAME(name) scipy_##name
#else
#define CONVBASIS_BLAS_NAME(name) name
#endif

// LAPACK comes in the same library. The last argument is the length of the first, as Fortran has
// it.
extern "C" {
void CONVBASIS_BLAS_NAME(dpotrf_)(const char* triangle, const int* n, double* a, const int* stride,
                                  int* info, std::size_t length);
void CONVBASIS_BLAS_NAME(dpotri_)(const char* triangle, const int* n, double* a, const int* stride,
                                  int* info, std::size_t length);
void CONVBASIS_BLAS_NAME(dsyevd_)(const char* job, const char* triangle, const int* n, double* a,
                                  const int* stride, double* values, double* work,
                                  const int* work_size, int* int_work, const int* int_work_size,
                                  int* info, std::size_t job_length, std::size_t length);
}

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

bool invert_positive_definite(index_t n, Matrix<double> a) {
  if (n <= 0) return true;
  run_single_threaded();
  const int size = static_cast<int>(n), stride = static_cast<int>(a.stride);
  int info = 0;
  CONVBASIS_BLAS_NAME(dpotrf_)("L", &size, a.data, &stride, &info, 1);
  if (info == 0) CONVBASIS_BLAS_NAME(dpotri_)("L", &size, a.data, &stride, &info, 1);
  // Fortran's lower triangle is the upper one of rows.
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < i; ++j) a.data[i * a.stride + j] = a.data[j * a.stride + i];
  return info == 0;
}

bool eigen_decompose(index_t n, Matrix<double> a, double* values) {
  if (n <= 0) return true;
  run_single_threaded();
  const int size = static_cast<int>(n), stride = static_cast<int>(a.stride);
  const int work_size = 1 + 6 * size + 2 * size * size, int_work_size = 3 + 5 * size;
  std::vector<double> work(static_cast<std::size_t>(work_size));
  std::vector<int> int_work(static_cast<std::size_t>(int_work_size));
  int info = 0;
  CONVBASIS_BLAS_NAME(dsyevd_)
  ("V", "L", &size, a.data, &stride, values, work.data(), &work_size, int_work.data(),
   &int_work_size, &info, 1, 1);
  return info == 0;
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
