#include "cpu/lowrank_scales.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "cpu/rows.h"

namespace convbasis {
namespace {

/// The largest |entry - centre| of the listed rows.
template <class T>
double peak(const View<const T, 2>& matrix, std::span<const index_t> listed,
            std::span<const double> centre) {
  double largest = 0;
  for (const index_t row : listed)
    for (index_t c = 0; c < matrix.shape[1]; ++c) {
      const double middle = centre.empty() ? 0.0 : centre[static_cast<std::size_t>(c)];
      largest = std::max(largest, std::abs(static_cast<double>(matrix(row, c)) - middle));
    }
  return largest;
}

}  // namespace

template <class T>
int key_exponent(const View<const T, 2>& query, std::span<const index_t> queries,
                 const View<const T, 2>& key, std::span<const index_t> keys,
                 std::span<const double> centre, double scale) {
  const double by_query = std::abs(scale) * peak<T>(query, queries, {});
  const double by_key = peak<T>(key, keys, centre);
  const auto has_exponent = [](double x) { return x > 0 && std::isfinite(x); };
  if (!has_exponent(by_query) || !has_exponent(by_key)) return 0;
  // Rounded down for either sign: moving a power of two from queries to keys then changes no bit.
  const double half = (std::logb(by_query) - std::logb(by_key)) / 2;
  return static_cast<int>(std::floor(half));
}

template <class T>
int value_exponent(const View<const T, 2>& value) {
  const bool is_packed = value.strides[1] == 1;
  T peak = 0;
  for (index_t j = 0; j < value.shape[0]; ++j) {
    const T* row = value.data + j * value.strides[0];
    if (is_packed) peak = std::max(peak, kernels<T>().max_magnitude(row, value.shape[1]));
    for (index_t c = 0; !is_packed && c < value.shape[1]; ++c)
      peak = std::max(peak, std::abs(value(j, c)));
  }
  return scaling_exponent(peak);
}

std::vector<index_t> numbers_without(index_t count, std::span<const index_t> left_out) {
  std::vector<index_t> all(static_cast<std::size_t>(count)), kept;
  std::iota(all.begin(), all.end(), index_t{0});
  std::set_difference(all.begin(), all.end(), left_out.begin(), left_out.end(),
                      std::back_inserter(kept));
  return kept;
}

#define CONVBASIS_INSTANTIATE(T)                                               \
  template int key_exponent(const View<const T, 2>&, std::span<const index_t>, \
                            const View<const T, 2>&, std::span<const index_t>, \
                            std::span<const double>, double);                  \
  template int value_exponent(const View<const T, 2>&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
