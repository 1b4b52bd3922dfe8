#pragma once

// Kernels as functors, so that one source runs on a GPU and, compiled as plain C++, on the emulated
// device of the tests. No stage mentions a thread or a barrier of CUDA.
//
//   launch(stream, rows, columns, f)         f(row, column) for each element; neighbours in a row
//                                            are neighbours in a warp
//   launch_blocks<kThreads>(stream, blocks, shared_bytes, f)
//                                            f(block); inside, phase after phase:
//                                            block.each(count, [&](int i) { ... });
//                                            (lanes() is a phase that no other thread waits for)
//
// What threads keep between phases is in a PerThread, what they exchange in block.shared, of at
// most kMostShared bytes.

#include <algorithm>
#include <cstdint>

#include "cuda/runtime.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include "cuda/check.h"
#define CONVBASIS_DEVICE __device__ __forceinline__
#define CONVBASIS_UNROLL _Pragma("unroll")
#define CONVBASIS_NO_UNROLL _Pragma("unroll 1")
#else
#include <cmath>
#include <vector>
#define CONVBASIS_DEVICE inline
#define CONVBASIS_UNROLL
#define CONVBASIS_NO_UNROLL
#endif

namespace convbasis::cuda {

constexpr int kElementThreads = 256;
constexpr index_t kMostBlocks = 2147483647, kMostRowBlocks = 65535;
constexpr std::size_t kMostShared = 48 << 10;  // what every GPU has without asking

#ifdef __CUDACC__

/// One value a thread, kept from phase to phase.
template <class T, int Threads>
class PerThread {
 public:
  CONVBASIS_DEVICE T& operator[](int) { return value_; }

 private:
  T value_;
};

template <int Threads>
class Block {
 public:
  CONVBASIS_DEVICE explicit Block(unsigned char* memory) : shared(memory), index(blockIdx.x) {}
  /// f(i) for 0 <= i < count, thread i % Threads taking i; then all wait for each other.
  template <class F>
  CONVBASIS_DEVICE void each(int count, const F& f) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += Threads) f(i);
    __syncthreads();
  }
  /// f(t) by each thread t, which waits for none.
  template <class F>
  CONVBASIS_DEVICE void lanes(const F& f) const {
    f(static_cast<int>(threadIdx.x));
  }
  CONVBASIS_DEVICE void wait() const { __syncthreads(); }
  unsigned char* shared;
  index_t index;
};

/// Kernels may ask for as many registers as leave room for kLeastBlocks of their thread blocks on a
/// multiprocessor, where the compiler's own choice (0) would spill.
template <class F>
constexpr int kLeastBlocks = 0;
template <class F>
  requires requires { F::kLeastBlocks; }
inline constexpr int kLeastBlocks<F> = F::kLeastBlocks;

template <int Threads, class F>
__global__ void __launch_bounds__(Threads, kLeastBlocks<F>)
    block_kernel(const __grid_constant__ F f) {
  extern __shared__ __align__(16) unsigned char memory[];
  f(Block<Threads>(memory));
}

template <class F>
__global__ void __launch_bounds__(kElementThreads)
    element_kernel(const __grid_constant__ F f, index_t rows, index_t columns) {
  const index_t column = index_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (column >= columns) return;
  for (index_t row = blockIdx.y; row < rows; row += gridDim.y) f(row, column);
}

template <class F>
void launch(const Stream& stream, index_t rows, index_t columns, const F& f) {
  if (rows <= 0 || columns <= 0) return;
  const dim3 grid(static_cast<unsigned>((columns + kElementThreads - 1) / kElementThreads),
                  static_cast<unsigned>(std::min(rows, kMostRowBlocks)));
  void* arguments[] = {const_cast<F*>(&f), &rows, &columns};
  CONVBASIS_CHECK_CUDA(cudaLaunchKernel(reinterpret_cast<const void*>(element_kernel<F>), grid,
                                        dim3(kElementThreads), arguments, 0, native(stream)));
}

template <int Threads, class F>
void launch_blocks(const Stream& stream, index_t blocks, std::size_t shared_bytes, const F& f) {
  if (blocks <= 0) return;
  if (blocks > kMostBlocks) throw_backend("launch", "too many blocks for one grid");
  void* arguments[] = {const_cast<F*>(&f)};
  CONVBASIS_CHECK_CUDA(cudaLaunchKernel(reinterpret_cast<const void*>(block_kernel<Threads, F>),
                                        dim3(static_cast<unsigned>(blocks)), dim3(Threads),
                                        arguments, shared_bytes, native(stream)));
}

#else

template <class T, int Threads>
class PerThread {
 public:
  T& operator[](int i) { return values_[static_cast<std::size_t>(i % Threads)]; }

 private:
  std::vector<T> values_ = std::vector<T>(Threads);
};

/// Threads run one after another, in turns forwards and backwards: a phase that depends on their
/// order gives wrong results.
template <int Threads>
class Block {
 public:
  Block(unsigned char* memory, index_t number) : shared(memory), index(number) {}
  template <class F>
  void each(int count, const F& f) {
    forwards_ = !forwards_;
    for (int i = 0; i < count; ++i) f(forwards_ ? i : count - 1 - i);
  }
  template <class F>
  void lanes(const F& f) {
    each(Threads, f);
  }
  void wait() {}
  unsigned char* shared;
  index_t index;

 private:
  bool forwards_ = false;
};

template <class F>
void launch(const Stream&, index_t rows, index_t columns, const F& f) {
  for (index_t row = rows; row-- > 0;)
    for (index_t column = 0; column < columns; ++column) f(row, column);
}

template <int Threads, class F>
void launch_blocks(const Stream&, index_t blocks, std::size_t shared_bytes, const F& f) {
  if (shared_bytes > kMostShared) throw_backend("launch", "too much shared memory");
  std::vector<std::max_align_t> memory(shared_bytes / sizeof(std::max_align_t) + 1);
  for (index_t i = blocks; i-- > 0;) {
    auto* bytes = reinterpret_cast<unsigned char*>(memory.data());
    std::fill_n(bytes, shared_bytes, static_cast<unsigned char>(0xff));  // NaN for who reads first
    f(Block<Threads>(bytes, i));
  }
}

#endif

}  // namespace convbasis::cuda
