#include "convbasis/calibrate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/draws.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/dense_rows.h"
#include "cpu/far_fit.h"
#include "cpu/key_selection.h"
#include "cpu/rank_keys.h"

namespace convbasis {
namespace {

constexpr const char* kName = "conv_attention";

/// Short sequences have one sample row for so many rows.
constexpr index_t kRowsPerSample = 32;

/// Sample rows that choices are tried on, at most, and how few of a short sequence.
constexpr index_t kMostTried = 32, kLeastTried = 16, kRowsPerTried = 128;

/// Choices are fitted to the sample rows themselves, so their error there has to be that much
/// below what is wanted.
constexpr double kMargin = 0.75;

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
        exec_(exec) {}

  void run() {
    const CalibrateOptions& options = all_.options;
    found_.near_blocks = ceil_div(options.window, kKeyBlock);
    const std::vector<index_t> rows =
        draw_rows(options.seed, flat_, kWholeBlocks * kKeyBlock, head_.n,
                  std::min(options.sample_rows, head_.n / kRowsPerSample));
    if (rows.empty()) return;  // all keys are exact
    const index_t tried = std::clamp(head_.n / kRowsPerTried, kLeastTried, kMostTried);
    const index_t step = ceil_div(static_cast<index_t>(rows.size()), tried);
    std::vector<index_t> few, others;
    for (std::size_t r = 0; r < rows.size(); ++r)
      (r % at(step) == 0 ? few : others).push_back(rows[r]);

    FarMasses masses(head_.n, options.window);
    DenseRows<T> sample(head_, std::move(few), exec_);
    masses.add(sample.rows(), sample.weights(), sample.sums());
    sample.attend(exec_);
    if (options.tol > 0 && is_hopeless(sample, masses)) return;
    {
      const DenseRows<T> more(head_, std::move(others), exec_);
      masses.add(more.rows(), more.weights(), more.sums());
    }
    fit(masses);
    choose(sample);
  }

 private:
  /// Whether even a basis fitted to none but the rows that it is tried on misses the wanted error.
  bool is_hopeless(const DenseRows<T>& sample, const FarMasses& masses) {
    fit(masses);
    found_.sample_error = INFINITY;
    for (const bool has_far : {true, false}) {
      found_.has_far = has_far;
      found_.sample_error = std::min(found_.sample_error, error_of(sample, all_.most_retrieved));
      if (found_.sample_error <= all_.options.tol) return false;
    }
    return true;
  }

  /// Heavy keys, weights of the others, and, the first time, key blocks to retrieve.
  void fit(const FarMasses& masses) {
    const CalibrateOptions& options = all_.options;
    const FarWeights fitted = fit_far(masses);
    found_.heavy = heavy_keys(masses.of_keys(), options.sinks, options.heavy_keys);
    found_.key_weights.assign(fitted.keys.begin(), fitted.keys.end());
    found_.lag_weights.assign(fitted.lags.begin(), fitted.lags.end());
    for (const index_t key : found_.heavy) found_.key_weights[at(key)] = T(0);
    if (found_.ranked.empty())
      found_.ranked =
          rank_key_blocks(head_, found_.heavy, found_.near_blocks, all_.most_retrieved, exec_);
  }

  /// The fewest retrieved blocks that bring the sample rows within the wanted error; the most when
  /// none does. Far keys are left out where that is better.
  void choose(const DenseRows<T>& sample) {
    std::vector<index_t> choices{0};
    for (index_t m = 1; m < all_.most_retrieved; m *= 2) choices.push_back(m);
    if (all_.most_retrieved > 0) choices.push_back(all_.most_retrieved);
    const double limit = kMargin * all_.options.tol;
    found_.has_far = true;
    std::size_t low = 0, high = choices.size() - 1;
    double best = error_of(sample, choices[high]);
    while (low < high && best <= limit) {
      const std::size_t middle = (low + high) / 2;
      const double error = error_of(sample, choices[middle]);
      if (error <= limit) {
        high = middle;
        best = error;
      } else {
        low = middle + 1;
      }
    }
    found_.has_far = false;
    found_.sample_error = error_of(sample, choices[high]);
    if (found_.sample_error > best) {
      found_.has_far = true;
      found_.sample_error = best;
    }
  }

  double error_of(const DenseRows<T>& sample, index_t retrieved) {
    found_.retrieved = retrieved;
    return sample.relative_error(all_, found_, flat_, exec_);
  }

  const HeadArrays<T>& head_;
  const Calibration<T>& all_;
  HeadCalibration<T>& found_;
  index_t flat_;
  const Exec& exec_;
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

/// Blocks to retrieve at most, so that exact keys stay below their share of a row's.
index_t most_retrieved(const CalibrateOptions& options, index_t n) {
  const double mean = kMostExact * static_cast<double>(n) / 2;
  const double fixed = static_cast<double>(options.window + options.heavy_keys + kKeyBlock);
  const auto fitting = static_cast<index_t>(std::max(mean - fixed, 0.0) / kKeyBlock);
  return std::min(options.retrieval_blocks, fitting);
}

}  // namespace

template <class T>
Calibration<T> calibrate(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                         const CalibrateOptions& options, const AttentionOptions& attention,
                         const Exec& exec) {
  require_attention(kName, query, key, value);
  check(options);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require(
      n >= 1 && key.shape[2] == n, kName,
      "key has " + std::to_string(key.shape[2]) + " rows; expected as many as query, 1 or more");
  const index_t count = batch * query_heads;
  Calibration<T> found;
  found.options = options;
  found.batch = batch;
  found.query_heads = query_heads;
  found.rows = n;
  found.most_retrieved = most_retrieved(options, n);
  found.heads.resize(at(count));
  for_each_head(exec, count, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const HeadArrays<T> head(head_view(query, b, h), head_view(key, b, g), head_view(value, b, g),
                             scale_of(attention, head_dim), inside);
    HeadCalibrator<T>(head, found, flat, inside).run();
  });
  return found;
}

#define CONVBASIS_INSTANTIATE(T)                                                          \
  template Calibration<T> calibrate(View<const T, 4>, View<const T, 4>, View<const T, 4>, \
                                    const CalibrateOptions&, const AttentionOptions&,     \
                                    const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
