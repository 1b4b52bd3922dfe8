#include <cublas_v2.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "cuda/buffer.h"
#include "cuda/check.h"
#include "cuda/gemm.h"
#include "cuda/library.h"

namespace convbasis::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw_backend(call, CONVBASIS_LOADED(cublas(), cublasGetStatusString)(status));
}
#define CONVBASIS_CUBLAS(name, ...) check_blas(CONVBASIS_LOADED(cublas(), name)(__VA_ARGS__), #name)

// What NVIDIA recommends for Hopper; smaller chips need less.
constexpr index_t kWorkspaceBytes = 32 << 20;

/// One handle a device, never destroyed: at the end of a process CUDA may be gone before it.
class Handle {
 public:
  static Handle& of(int device) {
    static std::mutex& mutex = *new std::mutex;
    static auto& handles = *new std::map<int, std::unique_ptr<Handle>>;
    const std::lock_guard lock(mutex);
    std::unique_ptr<Handle>& handle = handles[device];
    if (handle == nullptr) handle = std::make_unique<Handle>();
    return *handle;
  }
  Handle() {
    CONVBASIS_CUBLAS(cublasCreate, &handle_);
    CONVBASIS_CUBLAS(cublasSetMathMode, handle_, CUBLAS_DEFAULT_MATH);
  }

  /// Stream and workspace are the handle's own state: one caller at a time may set them and go.
  template <class Execute>
  void run(const Stream& stream, const Execute& execute) {
    const DeviceBuffer<char> workspace(stream, kWorkspaceBytes);
    const std::lock_guard lock(mutex_);
    CONVBASIS_CUBLAS(cublasSetStream, handle_, native(stream));
    CONVBASIS_CUBLAS(cublasSetWorkspace, handle_, workspace.data(), kWorkspaceBytes);
    execute(handle_);
  }

 private:
  cublasHandle_t handle_ = nullptr;
  std::mutex mutex_;
};

// cuBLAS stores columns: the transposes of all three are multiplied, B first.
template <class Native, class Function, class T, class Real>
void run(Function function, const Stream& stream, index_t m, index_t n, index_t k, Real alpha,
         Matrices<const T> a, Matrices<const T> b, bool transpose_b, Real beta, Matrices<T> c,
         index_t batch) {
  if (m == 0 || n == 0 || batch == 0) return;
  const auto native_of = [](auto* data) { return reinterpret_cast<const Native*>(data); };
  const auto least_one = [](index_t stride) { return std::max(stride, index_t{1}); };
  const T one{alpha}, two{beta};
  Handle::of(stream.device).run(stream, [&](cublasHandle_t handle) {
    check_blas(function(handle, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, n, m, k,
                        native_of(&one), native_of(b.data), least_one(b.stride), b.step,
                        native_of(a.data), least_one(a.stride), a.step, native_of(&two),
                        reinterpret_cast<Native*>(c.data), least_one(c.stride), c.step, batch),
               "cublasGemmStridedBatched");
  });
}

}  // namespace

Library& cublas() {
  static Library& library = *new Library("libcublas.so." + std::to_string(CUBLAS_VER_MAJOR));
  return library;
}

#define CONVBASIS_GEMM(T, Real, Native, function)                                                \
  template <>                                                                                    \
  void multiply(const Stream& stream, index_t m, index_t n, index_t k, Real alpha,               \
                Matrices<const T> a, Matrices<const T> b, bool transpose_b, Real beta,           \
                Matrices<T> c, index_t batch) {                                                  \
    run<Native>(CONVBASIS_LOADED(cublas(), function), stream, m, n, k, alpha, a, b, transpose_b, \
                beta, c, batch);                                                                 \
  }
CONVBASIS_GEMM(float, float, float, cublasSgemmStridedBatched_64)
CONVBASIS_GEMM(double, double, double, cublasDgemmStridedBatched_64)
CONVBASIS_GEMM(Complex<float>, float, cuComplex, cublasCgemmStridedBatched_64)
CONVBASIS_GEMM(Complex<double>, double, cuDoubleComplex, cublasZgemmStridedBatched_64)
#undef CONVBASIS_GEMM

}  // namespace convbasis::cuda
