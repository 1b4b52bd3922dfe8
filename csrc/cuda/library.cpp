#include "cuda/library.h"

#include <dlfcn.h>

#include "convbasis/error.h"

namespace convbasis::cuda {

std::string Library::why_missing() {
  const std::lock_guard lock(mutex_);
  std::string first;
  for (const std::string& path : {file_, "/usr/local/cuda/lib64/" + file_}) {
    if (handle_ == nullptr) handle_ = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (handle_ != nullptr) return "";
    if (first.empty()) first = dlerror();
  }
  return file_ + " cannot be loaded (" + first +
         "); expected it in nvidia/cu13/lib beside the package (pip install 'convbasis[cuda13]'), "
         "on the loader's path, or in /usr/local/cuda/lib64";
}

void* Library::function(const char* name) {
  if (const std::string missing = why_missing(); !missing.empty())
    throw BackendError("[cuda] " + missing);
  void* address = dlsym(handle_, name);
  if (address == nullptr)
    throw BackendError("[cuda] " + file_ + " has no function " + name +
                       "; expected the version of the extra cuda13");
  return address;
}

}  // namespace convbasis::cuda
