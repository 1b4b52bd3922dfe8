#pragma once

// Random strips of many shapes, and schedules for them.

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cpu/strips.h"

namespace convbasis {

template <class T>
constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

template <class T>
[[nodiscard]] std::vector<T> random_numbers(index_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(normal(random));
  return numbers;
}

inline double larger(double worst, double error) {
  if (error <= worst) return worst;
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

/// Random kernels for given strips; the rows of kernels end exactly where the last lag is.
template <class T>
struct Strips {
  Strips(index_t rows, index_t columns, std::vector<index_t> starts, unsigned seed = 1)
      : layout{rows, columns, std::move(starts)},
        kernels(random_numbers<T>(layout.count() * rows, seed)) {}
  [[nodiscard]] StripMatrix<T> matrix() const { return {layout, {kernels.data(), layout.rows}}; }
  [[nodiscard]] long double entry(index_t i, index_t j) const {
    if (i < j) return 0;
    for (index_t r = layout.count(); r-- > 0;)
      if (j >= layout.begin(r))
        return j < layout.end(r) ? kernels[static_cast<std::size_t>(r * layout.rows + i - j)] : 0;
    return 0;
  }
  StripLayout layout;
  std::vector<T> kernels;
};

inline const std::vector<Schedule>& schedules() {
  static const std::vector<Schedule> all{{{}, 512},          // direct
                                         {{{16, 512}}, 16},  // one level
                                         {{{64, 512}}, 64},
                                         {{{64, 512}, {16, 64}}, 16},  // two
                                         {{{32, 512}, {16, 32}}, 16},
                                         {{{64, 512}, {32, 64}, {16, 32}}, 16},  // three
                                         {{{128, 512}, {32, 128}, {16, 32}}, 16}};
  return all;
}

template <class T>
std::vector<Strips<T>> strips_of_every_shape() {
  std::vector<Strips<T>> all;
  for (const index_t n : {1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 127, 257})
    all.emplace_back(n, n, std::vector<index_t>{0});
  all.emplace_back(130, 130, std::vector<index_t>{5});  // empty first columns
  all.emplace_back(130, 130, std::vector<index_t>{0, 64, 65, 127, 129});
  all.emplace_back(193, 193, std::vector<index_t>{1, 2, 3, 8, 16, 17, 128});
  all.emplace_back(200, 70, std::vector<index_t>{0, 3, 64, 69});  // fewer columns than rows
  all.emplace_back(200, 1, std::vector<index_t>{0});
  all.emplace_back(200, 64, std::vector<index_t>{0, 32});
  std::vector<index_t> every_column(70);
  for (index_t j = 0; j < 70; ++j) every_column[static_cast<std::size_t>(j)] = j;
  all.emplace_back(70, 70, every_column);
  all.emplace_back(150, 70, every_column);
  return all;
}

}  // namespace convbasis
