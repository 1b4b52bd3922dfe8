#pragma once

#include <limits>
#include <random>
#include <vector>

#include "cpu/simd/kernels.h"

/// Numbers, and all builds of the kernels, for tests of single kernels.
namespace convbasis {

inline constexpr index_t kCounts[] = {0,  1,  2,  3,  5,  7,  8,  9,  15, 16,
                                      17, 31, 32, 33, 63, 64, 65, 97, 130};

template <class T>
constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

template <class T>
std::vector<T> random_numbers(index_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(normal(random));
  return numbers;
}

/// Calls test(kernels of one build, T()) for every build and both types.
template <class Test>
void for_each_build(const Test& test) {
  for (const Kernels<float>* simd : available_kernels<float>()) test(*simd, float());
  for (const Kernels<double>* simd : available_kernels<double>()) test(*simd, double());
}

/// Every count with an aligned and a misaligned vector of exactly that size.
template <class T, class Test>
void for_each_vector(unsigned seed, const Test& test) {
  for (index_t shift : {0, 1}) {
    for (index_t n : kCounts) {
      std::vector<T> storage = random_numbers<T>(n + shift, seed++);
      test(storage.data() + shift, n);
    }
  }
}

}  // namespace convbasis
