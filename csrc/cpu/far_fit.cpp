#include "cpu/far_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace convbasis {
namespace {

constexpr int kIterations = 4;

/// A lag stands out when it has so many times the mean of its bin, and this share of all.
constexpr double kOutstanding = 8, kLeastShare = 0.02;
constexpr std::size_t kMostOutstanding = 16;

/// Masses are drawn to equal ones by this share of the mean mass of a key, or of a bin.
constexpr double kKeyPrior = 0.2, kLagPrior = 0.02;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Of kKeyBlock numbers; in as many sums as fit a vector, whatever the instruction set.
template <class T>
T block_sum(const T* x) {
  constexpr index_t kSums = 16;
  T sums[kSums] = {}, total = 0;
  for (index_t i = 0; i < kKeyBlock; i += kSums)
    for (index_t l = 0; l < kSums; ++l) sums[l] += x[i + l];
  for (const T sum : sums) total += sum;
  return total;
}

/// Borders of bins of block lags, each of them longer by the root of 2 than the one before.
std::vector<index_t> borders_of_bins(index_t first, index_t blocks) {
  std::vector<index_t> borders{first};
  while (borders.back() < blocks) {
    const auto grown =
        static_cast<index_t>(std::ceil(static_cast<double>(borders.back()) * M_SQRT2));
    borders.push_back(std::min(grown, blocks));
  }
  return borders;
}

/// The model, and its masses while it is fitted.
struct Fit {
  const FarMasses& masses;
  std::vector<index_t> borders;
  std::vector<double> key_weights, bin_weights, factors;

  /// Calls part(bin, first key, last key) for the keys of each bin that a row has.
  template <class Part>
  void for_each_bin(index_t row, const Part& part) const {
    const index_t block = row / kKeyBlock;
    for (std::size_t b = 0; b + 1 < borders.size() && borders[b] <= block; ++b)
      part(b, std::max<index_t>(block - borders[b + 1] + 1, 0) * kKeyBlock,
           (block - borders[b] + 1) * kKeyBlock);
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

FarMasses::FarMasses(index_t n, index_t near_blocks)
    : near_blocks_(near_blocks),
      of_keys_(at(n), 0.0),
      of_lags_(at(n), 0.0),
      of_block_lags_(at((n + kKeyBlock - 1) / kKeyBlock), 0.0) {}

template <class T>
void FarMasses::add(std::span<const index_t> rows, Rows<const T> weights,
                    std::span<const double> sums) {
  // In T, for a few rows at once: their sums are as exact as the weights.
  const auto n = static_cast<index_t>(of_keys_.size());
  std::vector<T> keys(of_keys_.size(), T(0)), lags_back(of_keys_.size(), T(0));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const T* row = weights.row(static_cast<index_t>(r));
    const index_t block = rows[r] / kKeyBlock, far = std::max<index_t>(block - near_blocks_, 0);
    const T share = static_cast<T>(1 / sums[r]);
    T* back = lags_back.data() + (n - 1 - rows[r]);
    for (index_t j = 0; j < far * kKeyBlock; ++j) {
      const T weight = share * row[j];
      keys[at(j)] += weight;
      back[j] += weight;
    }
    double mass = 0;
    for (index_t b = 0; b < far; ++b) {
      const double here = static_cast<double>(block_sum(row + b * kKeyBlock)) / sums[r];
      of_block_lags_[at(block - b)] += here;
      mass += here;
    }
    rows_.push_back(rows[r]);
    of_rows_.push_back(mass);
  }
  for (index_t j = 0; j < n; ++j) {
    of_keys_[at(j)] += static_cast<double>(keys[at(j)]);
    of_lags_[at(j)] += static_cast<double>(lags_back[at(n - 1 - j)]);
  }
}

std::vector<index_t> FarMasses::single_lags() const {
  const auto n = static_cast<index_t>(of_lags_.size());
  const auto borders =
      borders_of_bins(near_blocks_ + 1, static_cast<index_t>(of_block_lags_.size()));
  const double total = std::accumulate(of_lags_.begin(), of_lags_.end(), 0.0);
  std::vector<index_t> lags;
  for (std::size_t b = 0; b + 1 < borders.size(); ++b) {
    const index_t first = borders[b] * kKeyBlock, last = std::min(borders[b + 1] * kKeyBlock, n);
    const double sum = std::accumulate(of_lags_.begin() + first, of_lags_.begin() + last, 0.0);
    const double least =
        std::max(kOutstanding * sum / static_cast<double>(last - first), kLeastShare * total);
    for (index_t lag = first; lag < last; ++lag)
      if (of_lags_[at(lag)] > least) lags.push_back(lag);
  }
  std::stable_sort(lags.begin(), lags.end(),
                   [&](index_t a, index_t b) { return of_lags_[at(a)] > of_lags_[at(b)]; });
  lags.resize(std::min(lags.size(), kMostOutstanding));
  std::sort(lags.begin(), lags.end());
  return lags;
}

template <class T>
void FarMasses::leave_out(std::span<const index_t> lags, std::span<const index_t> rows,
                          Rows<const T> weights, std::span<const double> sums) {
  const auto take = [](double& mass, double part) { mass = std::max(mass - part, 0.0); };
  for (std::size_t r = 0; r < rows.size() && !lags.empty(); ++r) {
    const auto place = std::find(rows_.begin(), rows_.end(), rows[r]) - rows_.begin();
    for (const index_t lag : lags) {
      const index_t key = rows[r] - lag, block_lag = rows[r] / kKeyBlock - key / kKeyBlock;
      if (key < 0 || block_lag <= near_blocks_) continue;
      const double part = static_cast<double>(weights.row(static_cast<index_t>(r))[key]) / sums[r];
      take(of_rows_[at(place)], part);
      take(of_keys_[at(key)], part);
      take(of_lags_[at(lag)], part);
      take(of_block_lags_[at(block_lag)], part);
    }
  }
}

FarWeights fit_far(const FarMasses& masses) {
  const std::size_t n = masses.of_keys().size(), blocks = masses.of_block_lags().size();
  FarWeights fitted{std::vector<double>(n, 0.0), std::vector<double>(blocks, 0.0)};
  const auto& of_rows = masses.of_rows();
  const double total = std::accumulate(of_rows.begin(), of_rows.end(), 0.0);
  const index_t first = masses.near_blocks() + 1;
  if (!(total > 0) || first >= static_cast<index_t>(blocks)) return fitted;

  Fit fit{masses,
          borders_of_bins(first, static_cast<index_t>(blocks)),
          std::vector<double>(n, 1.0),
          {},
          std::vector<double>(of_rows.size(), 0.0)};
  const std::size_t bins = fit.borders.size() - 1;
  fit.bin_weights.assign(bins, 1.0);
  std::vector<double> wanted;
  for (std::size_t b = 0; b < bins; ++b) {
    const auto lags = masses.of_block_lags().begin();
    wanted.push_back(std::accumulate(lags + fit.borders[b], lags + fit.borders[b + 1], 0.0));
  }
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
  for (std::size_t b = 0; b < bins; ++b)
    std::fill(fitted.block_lags.begin() + fit.borders[b],
              fitted.block_lags.begin() + fit.borders[b + 1],
              fit.bin_weights[b] / (sum * kKeyBlock));  // far sums are then near means of values
  return fitted;
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template void FarMasses::add(std::span<const index_t>, Rows<const T>, std::span<const double>); \
  template void FarMasses::leave_out(std::span<const index_t>, std::span<const index_t>,          \
                                     Rows<const T>, std::span<const double>);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
