#include "core/schedule.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/buffer.h"

namespace convbasis {
namespace {

constexpr index_t kMinBlock = 32, kMaxBlock = 8192;
constexpr double kCache = 1 << 20;  // bytes that a core keeps to itself, about
constexpr double kLine = 64;        // bytes of a vector, at most: those of a cache line

// Steps that a CostModel does not name, as multiples of one that it does: fitted to stage times of
// many schedules, n = 1,024 to 262,144, k = 1 to 2,048. Those called far come on top where arrays
// leave a core's cache.
constexpr double kPass = 0.88;                         // a doubling of the block, in transforms
constexpr double kFarInput = 4.0;                      // a value of a piece's spectrum
constexpr double kWindowPass = 2.0, kFarWindow = 3.2;  // a doubling, of a window: gathered rows
constexpr double kInversePass = 0.26;                  // a doubling, in inverses
constexpr double kOutput = 2.6, kFarOutput = 13.5;     // a value of an inverse, which adds
constexpr double kSpectrum = 8.3, kFarSpectrum = 3.1;  // in products: packed, and put back
constexpr double kFarWeight = 63;                      // a value of a window's spectrum there
constexpr double kWidePair = 1.0;          // a multiply-add there whose weights lie far apart
constexpr double kRow = 12, kFarRow = 35;  // a row of the output, in direct steps
constexpr double kStripRow = 8.0;          // a row of a strip in its diagonal blocks
constexpr double kDot = 2;       // a multiply-add of a kernel's logits, in those of exact attention
constexpr double kEntry = 1.5;   // an entry of a kernel of many: they leave the cache
constexpr double kShared = 1.4;  // strips share the memory with other threads, exact tiles do not

/// What of an array of this size is not in the cache when it is wanted again.
double far_share(double bytes) {
  const double size = bytes / kCache;
  return size * size / (1 + size * size);
}

/// What the cost of a problem depends on.
struct Problem {
  double rows, strips, channels;
  const StripLayout* layout = nullptr;  ///< null: strips begin anywhere

  [[nodiscard]] double pieces(index_t block) const {
    if (layout == nullptr) return std::ceil(rows / static_cast<double>(block)) + strips;
    index_t count = 0;
    for (index_t r = 0; r < layout->count(); ++r)
      if (layout->begin(r) < layout->end(r))
        count += ceil_div(layout->end(r), block) - layout->begin(r) / block;
    return static_cast<double>(count);
  }
};

Problem problem_of(const StripLayout& strips, index_t channels) {
  return {static_cast<double>(strips.rows), static_cast<double>(strips.count()),
          static_cast<double>(channels), &strips};
}

StageCosts stage_costs(const Problem& problem, const Schedule& schedule, const CostModel& model) {
  StageCosts costs;
  const double channels = problem.channels;
  for (const Level& level : schedule.levels) {
    const double block = static_cast<double>(level.block), depth = std::log2(block);
    const double blocks = std::ceil(problem.rows / block);
    const double per_span = std::min(static_cast<double>(level.span) / block, blocks);
    const double pieces = problem.pieces(level.block);
    const double pairs = pieces * (per_span - 1) / 2;
    const double windows = problem.strips * std::min(per_span - 1, blocks / 2);
    // Spectra of a chunk; those of all windows; the windows' values of one frequency.
    const double far = far_share(2 * kLine * block * pieces * per_span / blocks);
    const double far_windows = 8 * windows * block > 1.5 * kCache ? 1 : 0;
    const double wide = 8 * windows > 1.5 * kCache ? 1 : 0;
    costs.transform += model.transform * block *
                       (pieces * channels * (kPass * depth + kFarInput * far) +
                        windows * depth * (kWindowPass + kFarWindow * far_windows));
    costs.products +=
        model.product * block *
        (channels * (pairs * (1 + kWidePair * wide) + pieces * (kSpectrum + kFarSpectrum * far)) +
         windows * kFarWeight * far_windows);
    costs.inverse += model.transform * block * blocks * channels *
                     (kOutput + kInversePass * depth + kFarOutput * far);
  }
  const double diagonal = std::min(static_cast<double>(schedule.diagonal), problem.rows);
  const double far = far_share(4 * problem.rows * channels);
  costs.diagonal = model.direct * channels *
                   (problem.rows * (diagonal / 2 + kRow + kFarRow * far) +
                    problem.strips * diagonal / 2 * kStripRow);
  return costs;
}

double schedule_cost(const Problem& problem, const Schedule& schedule, const CostModel& model) {
  const StageCosts costs = stage_costs(problem, schedule, model);
  return costs.transform + costs.products + costs.inverse + costs.diagonal;
}

/// The best of the schedules that cut blocks of `span` rows further.
struct Search {
  const Problem& problem;
  const CostModel& model;
  Schedule best;
  double best_cost;

  void refine(Schedule& schedule, index_t span, int levels) {
    if (const double cost = schedule_cost(problem, schedule, model); cost < best_cost) {
      best_cost = cost;
      best = schedule;
    }
    if (levels == 0) return;
    for (index_t block = kMinBlock; block <= kMaxBlock && 2 * block <= span; block *= 2) {
      schedule.levels.push_back({block, span});
      schedule.diagonal = block;
      refine(schedule, block, levels - 1);
      schedule.levels.pop_back();
    }
    schedule.diagonal = span;
  }
};

Schedule cheapest(const Problem& problem, const CostModel& model) {
  constexpr int kMostLevels = 3;
  const auto rows = static_cast<std::uint64_t>(std::max(problem.rows, 1.0));
  const auto whole = static_cast<index_t>(std::bit_ceil(rows));
  Schedule direct{{}, whole};
  Search search{problem, model, direct, schedule_cost(problem, direct, model)};
  search.refine(direct, whole, kMostLevels);
  return search.best;
}

}  // namespace

Pieces cut_into_pieces(const StripLayout& strips, index_t block) {
  Pieces pieces;
  const index_t blocks = ceil_div(strips.rows, block);
  pieces.first.assign(static_cast<std::size_t>(blocks) + 1, 0);
  for (index_t r = 0; r < strips.count(); ++r) {
    for (index_t at = strips.begin(r); at < strips.end(r);) {
      const index_t b = at / block;
      const index_t stop = std::min(strips.end(r), (b + 1) * block);
      pieces.list.push_back({r, b, at, stop});
      ++pieces.first[static_cast<std::size_t>(b) + 1];
      at = stop;
    }
  }
  for (std::size_t b = 1; b < pieces.first.size(); ++b) pieces.first[b] += pieces.first[b - 1];
  return pieces;
}

index_t most_pieces(const StripLayout& strips, const Level& level) {
  const Pieces pieces = cut_into_pieces(strips, level.block);
  const index_t blocks = ceil_div(strips.rows, level.block), per_span = level.span / level.block;
  index_t most = 0;
  for (index_t b = 0; b < blocks; b += per_span)
    most = std::max(most, pieces.first[static_cast<std::size_t>(std::min(b + per_span, blocks))] -
                              pieces.first[static_cast<std::size_t>(b)]);
  return most;
}

index_t max_block_lag(const StripLayout& strips, index_t strip, const Level& level) {
  if (strips.end(strip) <= strips.begin(strip)) return 0;
  const index_t last_block = (strips.rows - 1) / level.block;
  return std::min(level.span / level.block - 1, last_block - strips.begin(strip) / level.block);
}

StageCosts stage_costs(const StripLayout& strips, index_t channels, const Schedule& schedule,
                       const CostModel& model) {
  return stage_costs(problem_of(strips, channels), schedule, model);
}

Schedule choose_schedule(const StripLayout& strips, index_t channels, const CostModel& model) {
  return cheapest(problem_of(strips, channels), model);
}

index_t break_even(index_t seq, index_t head_dim, index_t value_dim, const CostModel& model) {
  if (seq <= 1) return seq;
  const auto n = static_cast<double>(seq), d = static_cast<double>(head_dim);
  const auto channels = static_cast<double>(value_dim);
  const double exact = n * n / 2 * (d + channels) * model.exact;
  const auto is_cheaper = [&](index_t k) {
    const Problem problem{n, static_cast<double>(k), channels, nullptr};
    const double kernels = problem.strips * n / 2 * (kDot * d * model.exact + kEntry * model.entry);
    const double product = schedule_cost(problem, cheapest(problem, model), model);
    return kShared * (product + kernels) <= exact;
  };
  if (is_cheaper(seq)) return seq;
  index_t low = 1, high = seq;  // the cost grows with k
  while (high - low > 1) {
    const index_t middle = low + (high - low) / 2;
    (is_cheaper(middle) ? low : high) = middle;
  }
  const double nearest = std::exp2(std::round(std::log2(static_cast<double>(low))));
  return std::min(seq, std::max(static_cast<index_t>(nearest), kFewBases));
}

}  // namespace convbasis
