#include <cufft.h>

#include <array>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "cuda/buffer.h"
#include "cuda/check.h"
#include "cuda/fft.h"
#include "cuda/library.h"

namespace convbasis::cuda {
namespace {

const char* text_of(cufftResult status) {
  switch (status) {
    case CUFFT_ALLOC_FAILED:
      return "CUFFT_ALLOC_FAILED: out of memory";
    case CUFFT_INVALID_TYPE:
      return "CUFFT_INVALID_TYPE";
    case CUFFT_INVALID_VALUE:
      return "CUFFT_INVALID_VALUE";
    case CUFFT_INVALID_SIZE:
      return "CUFFT_INVALID_SIZE";
    case CUFFT_INVALID_PLAN:
      return "CUFFT_INVALID_PLAN";
    case CUFFT_INTERNAL_ERROR:
      return "CUFFT_INTERNAL_ERROR";
    case CUFFT_EXEC_FAILED:
      return "CUFFT_EXEC_FAILED";
    case CUFFT_SETUP_FAILED:
      return "CUFFT_SETUP_FAILED";
    case CUFFT_NOT_SUPPORTED:
      return "CUFFT_NOT_SUPPORTED";
    default:
      return "an error of cuFFT";
  }
}

void check_fft(cufftResult status, const char* call) {
  if (status != CUFFT_SUCCESS) throw_backend(call, text_of(status));
}
#define CONVBASIS_CUFFT(name, ...) check_fft(CONVBASIS_LOADED(cufft(), name)(__VA_ARGS__), #name)

using Key = std::array<index_t, 4>;  // device, cufftType, length, batch

class Plan {
 public:
  explicit Plan(const Key& key) : key_(key) {
    CONVBASIS_CUFFT(cufftCreate, &handle_);
    try {
      make();
    } catch (...) {
      (void)CONVBASIS_LOADED(cufft(), cufftDestroy)(handle_);
      throw;
    }
  }
  ~Plan() { (void)CONVBASIS_LOADED(cufft(), cufftDestroy)(handle_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  /// Stream and work area are the plan's own state: one caller at a time may set them and go.
  template <class Execute>
  void run(const Stream& stream, const Execute& execute) {
    const DeviceBuffer<char> work(stream, static_cast<index_t>(work_bytes_));
    const std::lock_guard lock(mutex_);
    CONVBASIS_CUFFT(cufftSetStream, handle_, native(stream));
    if (work_bytes_ > 0) CONVBASIS_CUFFT(cufftSetWorkArea, handle_, work.data());
    execute(handle_);
  }
  [[nodiscard]] const Key& key() const { return key_; }

 private:
  void make() {
    const auto type = static_cast<cufftType>(key_[1]);
    long long length = key_[2], batch = key_[3], half = length / 2 + 1;
    const bool forward = type == CUFFT_R2C || type == CUFFT_D2Z;
    CONVBASIS_CUFFT(cufftSetAutoAllocation, handle_, 0);
    CONVBASIS_CUFFT(cufftMakePlanMany64, handle_, 1, &length, forward ? &length : &half, batch, 1,
                    forward ? &half : &length, batch, 1, type, batch, &work_bytes_);
  }

  Key key_;
  cufftHandle handle_ = 0;
  std::size_t work_bytes_ = 0;
  std::mutex mutex_;
};

/// The plans used last. Callers share what they hold, so a plan that is dropped here lives as long
/// as somebody enqueues with it. A plan whose work was captured is kept for good: nobody tells when
/// the graph is gone.
class Plans {
 public:
  std::shared_ptr<Plan> get(const Key& key, bool captured) {
    const std::lock_guard lock(mutex_);
    auto found = plans_.begin();
    while (found != plans_.end() && found->plan->key() != key) ++found;
    if (found == plans_.end()) {
      plans_.push_front({std::make_shared<Plan>(key), captured});
      drop_oldest();
    } else {
      found->captured = found->captured || captured;
      plans_.splice(plans_.begin(), plans_, found);
    }
    return plans_.front().plan;
  }

 private:
  struct Item {
    std::shared_ptr<Plan> plan;
    bool captured;
  };
  void drop_oldest() {
    if (plans_.size() <= kMost) return;
    for (auto i = plans_.end(); i-- != std::next(plans_.begin());) {
      if (i->captured) continue;
      plans_.erase(i);
      return;
    }
  }

  static constexpr std::size_t kMost = 64;
  std::mutex mutex_;
  std::list<Item> plans_;
};

/// Never destroyed: at the end of a process CUDA may be gone before it.
std::shared_ptr<Plan> plan_of(const Stream& stream, cufftType type, index_t length, index_t batch) {
  static Plans& plans = *new Plans;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CONVBASIS_CHECK_CUDA(cudaStreamIsCapturing(native(stream), &status));
  return plans.get({stream.device, static_cast<index_t>(type), length, batch},
                   status != cudaStreamCaptureStatusNone);
}

}  // namespace

Library& cufft() {
  static Library& library = *new Library("libcufft.so." + std::to_string(CUFFT_VER_MAJOR));
  return library;
}

template <>
void transform(const Stream& stream, index_t length, index_t batch, const float* in,
               Complex<float>* out) {
  plan_of(stream, CUFFT_R2C, length, batch)->run(stream, [&](cufftHandle handle) {
    CONVBASIS_CUFFT(cufftExecR2C, handle, const_cast<float*>(in),
                    reinterpret_cast<cufftComplex*>(out));
  });
}

template <>
void transform(const Stream& stream, index_t length, index_t batch, const double* in,
               Complex<double>* out) {
  plan_of(stream, CUFFT_D2Z, length, batch)->run(stream, [&](cufftHandle handle) {
    CONVBASIS_CUFFT(cufftExecD2Z, handle, const_cast<double*>(in),
                    reinterpret_cast<cufftDoubleComplex*>(out));
  });
}

template <>
void transform_back(const Stream& stream, index_t length, index_t batch, Complex<float>* in,
                    float* out) {
  plan_of(stream, CUFFT_C2R, length, batch)->run(stream, [&](cufftHandle handle) {
    CONVBASIS_CUFFT(cufftExecC2R, handle, reinterpret_cast<cufftComplex*>(in), out);
  });
}

template <>
void transform_back(const Stream& stream, index_t length, index_t batch, Complex<double>* in,
                    double* out) {
  plan_of(stream, CUFFT_Z2D, length, batch)->run(stream, [&](cufftHandle handle) {
    CONVBASIS_CUFFT(cufftExecZ2D, handle, reinterpret_cast<cufftDoubleComplex*>(in), out);
  });
}

}  // namespace convbasis::cuda
