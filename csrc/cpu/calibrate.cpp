#include "convbasis/calibrate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/draws.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/far_fit.h"
#include "cpu/key_selection.h"
#include "cpu/rank_keys.h"
#include "cpu/self_attention.h"

namespace convbasis {
namespace {

constexpr const char* kName = "conv_attention";

/// Short sequences have one sample row for so many rows.
constexpr index_t kRowsPerSample = 32;

/// Sample rows that choices are tried on, at most, and how few of a short sequence.
constexpr index_t kMostTried = 32, kLeastTried = 16, kRowsPerTried = 128;

/// A head takes up to so many times the wanted window where that is cheaper than more retrieved
/// blocks.
constexpr index_t kMostNear = 4;

/// A query block may retrieve so many times the mean.
constexpr index_t kMostOfMean = 4;

/// A logit of a query block that is not exact, by one of exact attention.
constexpr double kTileCost = 1.6;

/// Choices are fitted to the sample rows themselves, and few rows show few of the long tails of
/// errors: here errors have to be that much below what is wanted.
constexpr double kMargin = 0.2;

/// By what is expected of the tried rows, a head has to cost less than this share of exact
/// attention, its judging included: what is found costs more in the mean.
constexpr double kWorthTrying = 0.85;

/// Rows that callers judge: one of so many, at most as many; and what one costs, relative to a row
/// of all rows computed together.
constexpr double kRowsPerJudged = 32, kMostJudged = 128, kJudgeCost = 2;

/// A row may have at most this share of exact keys: with more, exact attention is about as fast.
constexpr double kMostExact = 0.4;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// One row drawn from each of `count` equal parts of [first, last).
std::vector<index_t> draw_rows(std::uint64_t seed, index_t flat, index_t first, index_t last,
                               index_t count) {
  count = std::clamp<index_t>(count, 0, std::max<index_t>(last - first, 0));
  std::vector<index_t> rows;
  for (index_t part = 0; part < count; ++part) {
    const index_t begin = first + (last - first) * part / count;
    const index_t end = first + (last - first) * (part + 1) / count;
    const double place = uniform_draw(seed, flat, -1, part) * static_cast<double>(end - begin);
    rows.push_back(std::min(begin + static_cast<index_t>(place), end - 1));
  }
  return rows;
}

/// The first keys, and those with the largest masses.
std::vector<index_t> heavy_keys(const std::vector<double>& masses, index_t sinks, index_t count) {
  std::vector<index_t> keys(masses.size());
  std::iota(keys.begin(), keys.end(), index_t{0});
  const auto n = static_cast<index_t>(keys.size());
  sinks = std::min(sinks, n);
  count = std::min(count, n - sinks);
  std::partial_sort(keys.begin() + sinks, keys.begin() + sinks + count, keys.end(),
                    [&](index_t a, index_t b) {
                      return masses[at(a)] != masses[at(b)] ? masses[at(a)] > masses[at(b)] : a < b;
                    });
  keys.resize(at(sinks + count));
  while (!keys.empty() && static_cast<index_t>(keys.size()) > sinks && masses[at(keys.back())] <= 0)
    keys.pop_back();
  std::sort(keys.begin(), keys.end());
  return keys;
}

/// Blocks to retrieve at most in the mean, so that exact keys stay below their share of a row's.
index_t most_retrieved(const CalibrateOptions& options, index_t n) {
  const double mean = kMostExact * static_cast<double>(n) / 2;
  const double fixed = static_cast<double>(options.window) +
                       static_cast<double>(options.heavy_keys) + static_cast<double>(kKeyBlock);
  const auto fitting = static_cast<index_t>(std::max(mean - fixed, 0.0) / kKeyBlock);
  return std::min(options.retrieval_blocks, fitting);
}

/// Fits and judges one head.
template <class T>
class HeadCalibrator {
 public:
  HeadCalibrator(const HeadArrays<T>& head, Calibration<T>& calibration, index_t flat,
                 const Exec& exec)
      : head_(head),
        all_(calibration),
        found_(calibration.heads[at(flat)]),
        flat_(flat),
        near_(ceil_div(std::min(calibration.options.window, head.n), kKeyBlock)),
        most_(most_retrieved(calibration.options, head.n)),
        exec_(exec) {}

  void run() {
    const CalibrateOptions& options = all_.options;
    const std::vector<index_t> rows =
        draw_rows(options.seed, flat_, kWholeBlocks * kKeyBlock, head_.n,
                  std::min(options.sample_rows, head_.n / kRowsPerSample));
    if (rows.empty()) return take_all();
    const index_t tried = std::clamp(head_.n / kRowsPerTried, kLeastTried, kMostTried);
    const index_t step = ceil_div(static_cast<index_t>(rows.size()), tried);
    std::vector<index_t> few, others;
    for (std::size_t r = 0; r < rows.size(); ++r)
      (r % at(step) == 0 ? few : others).push_back(rows[r]);

    FarMasses masses(head_.n, near_);
    DenseRows<T> sample(head_, std::move(few), exec_);
    masses.add(sample.rows(), sample.weights(), sample.sums());
    {
      const DenseRows<T> more(head_, std::move(others), exec_);
      masses.add(more.rows(), more.weights(), more.sums());
      found_.lags = masses.single_lags();
      for (const DenseRows<T>* part : {&std::as_const(sample), &more})
        masses.leave_out(found_.lags, part->rows(), part->weights(), part->sums());
    }
    fit(masses);
    sample.attend(found_.heavy, exec_);
    sample.set_model(all_, found_, flat_);
    choose(sample);
  }

 private:
  /// A head so short that every query block takes all keys exactly.
  void take_all() {
    found_.near_blocks = near_;
    found_.key_weights.assign(at(head_.n), T(0));
    found_.lag_weights.assign(at(ceil_div(head_.n, kKeyBlock)), T(0));
    found_.ranked.assign(at(ceil_div(head_.n, kKeyBlock) * all_.most_ranked), -1);
    found_.retrieved.assign(at(ceil_div(head_.n, kKeyBlock)), 0);
  }

  /// So many near blocks, and of the others `mean` a query block.
  void take(index_t near, index_t mean) {
    found_.near_blocks = near;
    found_.retrieved = take_largest(ranked_, head_.n, near, mean);
  }

  /// Heavy keys, weights of the others, and key blocks to retrieve.
  void fit(const FarMasses& masses) {
    const CalibrateOptions& options = all_.options;
    const FarWeights fitted = fit_far(masses);
    found_.heavy = heavy_keys(masses.of_keys(), options.sinks, options.heavy_keys);
    found_.key_weights.assign(fitted.keys.begin(), fitted.keys.end());
    found_.lag_weights.assign(fitted.block_lags.begin(), fitted.block_lags.end());
    for (const index_t key : found_.heavy) found_.key_weights[at(key)] = T(0);
    ranked_ = rank_key_blocks(head_, found_.heavy, near_, all_.most_ranked, exec_);
    found_.ranked = ranked_.blocks;
  }

  /// The near and retrieved blocks with which attention is expected to be the cheapest, those rows
  /// included that are to be computed exactly for the wanted error. Far keys are left out where
  /// that is better.
  void choose(const DenseRows<T>& sample) {
    found_.has_far = true;
    take(all_.options.tol > 0 ? near_ * kMostNear : near_, most_);
    const double least_exact = try_out(sample);
    if (all_.options.tol > 0) choose_blocks(sample, least_exact);
    if (std::isinf(found_.sample_error)) return;
    const double with = found_.sample_error;
    found_.has_far = false;
    try_out(sample);
    if (found_.sample_error > with) {
      found_.has_far = true;
      found_.sample_error = with;
    }
  }

  /// `least_exact` is the share of rows that have to be exact when most blocks are taken. So they
  /// stay, for whoever wants the head approximated all the same, where exact attention is cheaper.
  void choose_blocks(const DenseRows<T>& sample, double least_exact) {
    std::vector<std::pair<index_t, index_t>> choices;  // blocks in all, and near ones of them
    for (index_t near = near_; near <= near_ * kMostNear; near *= 2)
      for (index_t m = 0; m <= most_; m = m == 0 ? 1 : 2 * m) choices.emplace_back(near + m, near);
    std::sort(choices.begin(), choices.end());
    HeadCalibration<T> best;
    best.near_blocks = found_.near_blocks;
    best.retrieved = found_.retrieved;
    best.sample_error = INFINITY;
    double least = kWorthTrying;
    for (const auto& [blocks, near] : choices) {
      const double fixed = fixed_cost(blocks);
      if (fixed + least_exact >= least) break;
      take(near, blocks - near);
      const double cost = fixed + try_out(sample);
      if (cost >= least) continue;
      least = cost;
      best.near_blocks = near;
      best.retrieved = found_.retrieved;
      best.sample_error = found_.sample_error;
    }
    found_.near_blocks = best.near_blocks;
    found_.retrieved = std::move(best.retrieved);
    found_.sample_error = best.sample_error;
  }

  /// Logits of a row that is not computed exactly, and of judging, relative to exact attention.
  [[nodiscard]] double fixed_cost(index_t blocks) const {
    const auto n = static_cast<double>(head_.n);
    const double judging = kJudgeCost * std::min(kMostJudged, n / kRowsPerJudged) / n;
    const index_t keys = blocks * kKeyBlock + kKeyBlock / 2 +
                         static_cast<index_t>(found_.heavy.size() + found_.lags.size()) +
                         std::min(all_.options.sample_keys, head_.n) / 2;
    return judging + kTileCost * static_cast<double>(keys) / (n / 2);
  }

  /// Sets the error of the tried rows; returns the share of them that would have to be computed
  /// exactly to bring it within the margin of what is wanted.
  double try_out(const DenseRows<T>& sample) {
    std::vector<double> errors = sample.errors(all_, found_, exec_);
    std::sort(errors.begin(), errors.end());
    const double limit = kMargin * all_.options.tol;
    double sum = 0;
    std::size_t kept = 0;
    for (std::size_t r = 0; r < errors.size(); ++r) {
      sum += errors[r];
      if (sum <= limit * limit) kept = r + 1;
    }
    found_.sample_error = std::sqrt(sum);
    return 1 - static_cast<double>(kept) / static_cast<double>(errors.size());
  }

  const HeadArrays<T>& head_;
  const Calibration<T>& all_;
  HeadCalibration<T>& found_;
  index_t flat_, near_;
  index_t most_;  ///< blocks to retrieve, in the mean
  const Exec& exec_;
  RankedBlocks<T> ranked_;
};

void check(const CalibrateOptions& options) {
  const auto rule = [](bool holds, const char* name, const char* expected) {
    require(holds, kName,
            std::string("options.") + name + " is out of range; expected " + expected);
  };
  rule(options.window >= 1, "window", "1 or more");
  rule(options.sinks >= 0, "sinks", "0 or more");
  rule(options.heavy_keys >= 0, "heavy_keys", "0 or more");
  rule(options.retrieval_blocks >= 0, "retrieval_blocks", "0 or more");
  rule(options.sample_rows >= 1, "sample_rows", "1 or more");
  rule(options.sample_keys >= 1, "sample_keys", "1 or more");
  rule(options.tol >= 0 && std::isfinite(options.tol), "tol", "0 or more");
}

}  // namespace

template <class T>
Calibration<T> calibrate(const SelfAttention<T>& attention, const CalibrateOptions& options,
                         const Exec& exec) {
  check(options);
  const auto& arrays = attention.arrays();
  const index_t n = arrays.rows();
  Calibration<T> found;
  found.options = options;
  found.batch = arrays.batch();
  found.query_heads = arrays.heads();
  found.rows = n;
  found.most_ranked = std::min(kMostOfMean * most_retrieved(options, n), ceil_div(n, kKeyBlock));
  found.heads.resize(at(arrays.count()));
  for_each_head(exec, arrays.count(), [&](index_t flat, const Exec& inside) {
    const HeadArrays<T> head = arrays.head(flat);
    HeadCalibrator<T>(head, found, flat, inside).run();
  });
  return found;
}

#define CONVBASIS_INSTANTIATE(T) \
  template Calibration<T> calibrate(const SelfAttention<T>&, const CalibrateOptions&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
