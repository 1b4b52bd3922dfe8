#pragma once

#include "convbasis/types.h"

namespace convbasis::blas {

/// Row-major matrix, elements of a row contiguous.
template <class T>
struct Matrix {
  T* data;
  index_t stride;
};

/// C (m x n) = alpha * A (m x k) B (k x n) + beta * C. Runs on the calling thread alone.
template <class T>
void multiply(index_t m, index_t n, index_t k, T alpha, Matrix<const T> a, Matrix<const T> b,
              T beta, Matrix<T> c);

/// C (m x n) = alpha * A (m x k) B^T, B (n x k).
template <class T>
void multiply_transposed(index_t m, index_t n, index_t k, T alpha, Matrix<const T> a,
                         Matrix<const T> b, Matrix<T> c);

/// C (m x n) += A^T B, A (k x m).
template <class T>
void add_transposed_product(index_t m, index_t n, index_t k, Matrix<const T> a, Matrix<const T> b,
                            Matrix<T> c);

/// A (n x n, symmetric) becomes its inverse. False if it is not positive definite, A then
/// unspecified.
[[nodiscard]] bool invert_positive_definite(index_t n, Matrix<double> a);

/// A (n x n, symmetric) becomes its eigenvectors, one a row, by increasing eigenvalue. False if the
/// iteration does not converge.
[[nodiscard]] bool eigen_decompose(index_t n, Matrix<double> a, double* values);

/// Name and version, as far as the library tells.
[[nodiscard]] const char* description();

}  // namespace convbasis::blas
