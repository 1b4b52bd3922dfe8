#include "cpu/far_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace convbasis {
namespace {

constexpr int kIterations = 4;

/// Bins are at least this long, and grow by the root of 2.
constexpr index_t kShortestBin = 8;

/// A lag has a bin of its own when it has so many times the mean of its bin, and this share of all.
constexpr double kOutstanding = 8, kLeastShare = 0.002;
constexpr std::size_t kMostOutstanding = 16;

/// Masses are drawn to equal ones by this share of the mean mass of a key, or of a bin.
constexpr double kKeyPrior = 0.2, kLagPrior = 0.02;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// In as many sums as fit a vector, whatever the instruction set.
template <class T>
T sum_of(const T* x, index_t n) {
  constexpr index_t kSums = 16;
  T sums[kSums] = {}, total = 0;
  index_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (index_t l = 0; l < kSums; ++l) sums[l] += x[i + l];
  for (; i < n; ++i) total += x[i];
  for (const T sum : sums) total += sum;
  return total;
}

std::vector<index_t> equal_bins(index_t window, index_t n) {
  std::vector<index_t> borders{window};
  while (borders.back() < n) {
    const auto grown =
        static_cast<index_t>(std::ceil(static_cast<double>(borders.back()) * M_SQRT2));
    borders.push_back(std::min(std::max(borders.back() + kShortestBin, grown), n));
  }
  return borders;
}

/// Borders of the bins, from `window` to n.
std::vector<index_t> bins_of(const std::vector<double>& lags, index_t window) {
  const auto n = static_cast<index_t>(lags.size());
  std::vector<index_t> borders = equal_bins(window, n);
  const double total = std::accumulate(lags.begin(), lags.end(), 0.0);
  std::vector<index_t> outstanding;
  for (std::size_t b = 0; b + 1 < borders.size(); ++b) {
    const auto first = lags.begin() + borders[b], last = lags.begin() + borders[b + 1];
    const double mean = std::accumulate(first, last, 0.0) / static_cast<double>(last - first);
    for (auto lag = first; lag != last; ++lag)
      if (*lag > kOutstanding * mean && *lag > kLeastShare * total)
        outstanding.push_back(lag - lags.begin());
  }
  if (outstanding.size() > kMostOutstanding) {
    std::nth_element(outstanding.begin(), outstanding.begin() + kMostOutstanding, outstanding.end(),
                     [&](index_t a, index_t b) { return lags[at(a)] > lags[at(b)]; });
    outstanding.resize(kMostOutstanding);
  }
  for (const index_t lag : outstanding) borders.insert(borders.end(), {lag, lag + 1});
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  return borders;
}

/// The model, and its masses while it is fitted.
struct Fit {
  const FarMasses& masses;
  std::vector<index_t> borders;
  std::vector<double> key_weights, bin_weights, factors;

  /// Calls part(bin, first key, last key) for the keys of each bin that row i has.
  template <class Part>
  void for_each_bin(index_t row, const Part& part) const {
    for (std::size_t b = 0; b + 1 < borders.size() && borders[b] <= row; ++b)
      part(b, std::max<index_t>(row - borders[b + 1] + 1, 0), row - borders[b] + 1);
  }

  /// The factor that gives each row its mass; key_sums are running sums of the key weights.
  void set_factors(const std::vector<double>& key_sums) {
    for (std::size_t r = 0; r < factors.size(); ++r) {
      double sum = 0;
      for_each_bin(masses.rows()[r], [&](std::size_t b, index_t first, index_t last) {
        sum += bin_weights[b] * (key_sums[at(last)] - key_sums[at(first)]);
      });
      factors[r] = sum > 0 ? masses.of_rows()[r] / sum : 0;
    }
  }
  [[nodiscard]] std::vector<double> key_sums() const {
    std::vector<double> sums(key_weights.size() + 1, 0.0);
    std::partial_sum(key_weights.begin(), key_weights.end(), sums.begin() + 1);
    return sums;
  }

  void fit_bins(const std::vector<double>& wanted, double prior) {
    const std::vector<double> sums = key_sums();
    set_factors(sums);
    std::vector<double> masses_of(bin_weights.size(), 0.0);
    for (std::size_t r = 0; r < factors.size(); ++r)
      for_each_bin(masses.rows()[r], [&](std::size_t b, index_t first, index_t last) {
        masses_of[b] += factors[r] * bin_weights[b] * (sums[at(last)] - sums[at(first)]);
      });
    for (std::size_t b = 0; b < bin_weights.size(); ++b)
      bin_weights[b] *= (wanted[b] + prior) / (masses_of[b] + prior);
  }

  void fit_keys(double prior) {
    set_factors(key_sums());
    std::vector<double> steps(key_weights.size() + 1, 0.0);
    for (std::size_t r = 0; r < factors.size(); ++r)
      for_each_bin(masses.rows()[r], [&](std::size_t b, index_t first, index_t last) {
        steps[at(first)] += factors[r] * bin_weights[b];
        steps[at(last)] -= factors[r] * bin_weights[b];
      });
    double rate = 0;
    for (std::size_t j = 0; j < key_weights.size(); ++j) {
      rate += steps[j];
      const double mass = std::max(rate, 0.0) * key_weights[j];
      key_weights[j] *= (masses.of_keys()[j] + prior) / (mass + prior);
    }
  }
};

}  // namespace

FarMasses::FarMasses(index_t n, index_t window)
    : window_(window), of_keys_(at(n), 0.0), of_lags_(at(n), 0.0) {}

template <class T>
void FarMasses::add(std::span<const index_t> rows, Rows<const T> weights,
                    std::span<const double> sums) {
  // In T, for a few rows at once: their sums are as exact as the weights.
  const auto n = static_cast<index_t>(of_keys_.size());
  std::vector<T> keys(of_keys_.size(), T(0)), lags_back(of_keys_.size(), T(0));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const T* row = weights.row(static_cast<index_t>(r));
    const index_t last = std::max<index_t>(rows[r] - window_ + 1, 0);
    const T share = static_cast<T>(1 / sums[r]);
    T* back = lags_back.data() + (n - 1 - rows[r]);
    for (index_t j = 0; j < last; ++j) {
      const T weight = share * row[j];
      keys[at(j)] += weight;
      back[j] += weight;
    }
    rows_.push_back(rows[r]);
    of_rows_.push_back(static_cast<double>(sum_of(row, last)) / sums[r]);
  }
  for (index_t j = 0; j < n; ++j) {
    of_keys_[at(j)] += static_cast<double>(keys[at(j)]);
    of_lags_[at(j)] += static_cast<double>(lags_back[at(n - 1 - j)]);
  }
}

FarWeights fit_far(const FarMasses& masses) {
  const std::size_t n = masses.of_keys().size();
  FarWeights fitted{std::vector<double>(n, 0.0), std::vector<double>(n, 0.0)};
  const auto& of_rows = masses.of_rows();
  const double total = std::accumulate(of_rows.begin(), of_rows.end(), 0.0);
  if (!(total > 0) || masses.window() >= static_cast<index_t>(n)) return fitted;

  const auto& of_lags = masses.of_lags();
  Fit fit{masses,
          bins_of(of_lags, masses.window()),
          std::vector<double>(n, 1.0),
          {},
          std::vector<double>(of_rows.size(), 0.0)};
  const std::size_t bins = fit.borders.size() - 1;
  fit.bin_weights.assign(bins, 1.0);
  std::vector<double> wanted;
  for (std::size_t b = 0; b < bins; ++b)
    wanted.push_back(std::accumulate(of_lags.begin() + fit.borders[b],
                                     of_lags.begin() + fit.borders[b + 1], 0.0));
  for (int i = 0; i < kIterations; ++i) {
    fit.fit_bins(wanted, kLagPrior * total / static_cast<double>(bins));
    fit.fit_keys(kKeyPrior * total / static_cast<double>(n));
  }

  const double mean =
      std::accumulate(fit.key_weights.begin(), fit.key_weights.end(), 0.0) / static_cast<double>(n);
  for (std::size_t j = 0; j < n; ++j) fitted.keys[j] = fit.key_weights[j] / mean;
  double sum = 0;
  for (std::size_t b = 0; b < bins; ++b)
    sum += fit.bin_weights[b] * static_cast<double>(fit.borders[b + 1] - fit.borders[b]);
  for (std::size_t b = 0; b < bins; ++b)  // far sums are then near means of values
    std::fill(fitted.lags.begin() + fit.borders[b], fitted.lags.begin() + fit.borders[b + 1],
              fit.bin_weights[b] / sum);
  return fitted;
}

template void FarMasses::add(std::span<const index_t>, Rows<const float>, std::span<const double>);
template void FarMasses::add(std::span<const index_t>, Rows<const double>, std::span<const double>);

}  // namespace convbasis
