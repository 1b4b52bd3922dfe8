#pragma once

#include <stdexcept>

namespace convbasis {

/// An argument breaks a documented rule. The message names function, argument, rule and value.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// The request is well formed, but this build or method cannot honour it.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A library underneath (BLAS, FFT, the operating system) failed.
struct BackendError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Exec::interrupt asked to stop. Outputs hold unspecified values.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace convbasis
