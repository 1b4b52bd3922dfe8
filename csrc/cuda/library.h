#pragma once

#include <mutex>
#include <string>

namespace convbasis::cuda {

/// A shared library that is loaded when a function of it is first called: who never computes on a
/// GPU needs none of NVIDIA's.
///
/// It is looked for on the run path of what this is linked into, which the build sets to the pip
/// packages beside the Python package, then where the loader looks, then in the usual toolkit.
class Library {
 public:
  explicit Library(std::string file) : file_(std::move(file)) {}
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  /// The address of a function. Throws BackendError when it or the library is not there.
  [[nodiscard]] void* function(const char* name);

  /// What is missing and how to get it; empty when the library is there.
  [[nodiscard]] std::string why_missing();

 private:
  std::string file_;
  std::mutex mutex_;
  void* handle_ = nullptr;  // never closed: at the end of a process CUDA may be gone before it
};

[[nodiscard]] Library& cufft();
[[nodiscard]] Library& cublas();

}  // namespace convbasis::cuda

/// The function `name` of a library, by the type that its header declares.
#define CONVBASIS_LOADED(library, name)                                                       \
  ([] {                                                                                       \
    static const auto address = reinterpret_cast<decltype(&name)>((library).function(#name)); \
    return address;                                                                           \
  }())
