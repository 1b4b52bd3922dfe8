#pragma once

namespace convbasis {

/// True when this build can compute on an NVIDIA GPU and one is usable in this process.
///
/// Always false in a build without CUDA. Never throws: a machine without a driver is an answer, not
/// an error. Everything in this library runs on the CPU whatever the answer is.
[[nodiscard]] bool cuda_available() noexcept;

}  // namespace convbasis
