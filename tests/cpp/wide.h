#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "convbasis/sparsify.h"

/// A matrix of columns with a share of entries that are not 0, dense and sparse.
struct Wide {
  Wide(convbasis::index_t rows, convbasis::index_t count, double share, std::uint64_t seed = 5)
      : n(rows), d(count), x(static_cast<std::size_t>(rows * count)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (double& value : x) value = uniform(random) < share ? normal(random) : 0;
    compress();
  }
  [[nodiscard]] double& operator()(convbasis::index_t i, convbasis::index_t j) {
    return x[static_cast<std::size_t>(i * d + j)];
  }
  [[nodiscard]] double operator()(convbasis::index_t i, convbasis::index_t j) const {
    return x[static_cast<std::size_t>(i * d + j)];
  }
  /// Forms the sparse columns; again after a change of x.
  void compress() {
    starts = {0};
    entry_rows.clear();
    values.clear();
    for (convbasis::index_t j = 0; j < d; ++j) {
      for (convbasis::index_t i = 0; i < n; ++i)
        if ((*this)(i, j) != 0) {
          entry_rows.push_back(i);
          values.push_back((*this)(i, j));
        }
      starts.push_back(static_cast<convbasis::index_t>(values.size()));
    }
  }
  [[nodiscard]] convbasis::View<const double, 2> dense() const {
    return convbasis::contiguous_view<const double, 2>(x.data(), {n, d});
  }
  [[nodiscard]] convbasis::SparseColumns sparse() const { return {n, starts, entry_rows, values}; }

  convbasis::index_t n, d;
  std::vector<double> x, values;
  std::vector<convbasis::index_t> starts, entry_rows;
};
