#include "core/schedule.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/buffer.h"

namespace convbasis {
namespace {

constexpr index_t kFewBases = 64;  // break_even() is never below: small problems take microseconds
constexpr index_t kMinBlock = 32, kMaxBlock = 8192;
constexpr index_t kNearBlock = 4096;  // longest block whose spectrum stays in a core's cache

// Steps that a CostModel does not name, as multiples of one that it does: fitted to stage times of
// many schedules, n = 1,024 to 262,144, k = 1 to 1,024.
constexpr double kFar = 1.3;        // a transform whose vectors leave a core's cache
constexpr double kInverse = 1.25;   // an inverse transform, in transforms: it adds to the output
constexpr double kWindow = 5;       // transform of a kernel window: gathered, scattered
constexpr double kSpectrum = 7;     // a value of a spectrum, in products: packed and written back
constexpr double kWeight = 60;      // a value of a window's spectrum: it comes from memory
constexpr double kRow = 75;         // a row of the output, in direct steps: from memory and back
constexpr double kStripRow = 1100;  // a row of a strip in its diagonal blocks, all channels
constexpr double kDot = 2;       // a multiply-add of a kernel's logits, in those of exact attention
constexpr double kEntry = 1.5;   // an entry of a kernel of many: they leave the cache
constexpr double kShared = 1.4;  // strips share the memory with other threads, exact tiles do not

/// What the cost of a problem depends on: strips are taken to be of one length.
struct Problem {
  double rows, strips, channels;
};

Problem problem_of(const StripLayout& strips, index_t channels) {
  return {static_cast<double>(strips.rows), static_cast<double>(strips.count()),
          static_cast<double>(channels)};
}

StageCosts stage_costs(const Problem& problem, const Schedule& schedule, const CostModel& model) {
  StageCosts costs;
  for (const Level& level : schedule.levels) {
    const double block = static_cast<double>(level.block), depth = std::log2(block);
    const double blocks = std::ceil(problem.rows / block);
    const double per_span = std::min(static_cast<double>(level.span) / block, blocks);
    const double pieces = blocks + problem.strips;
    const double pairs = pieces * (per_span - 1) / 2;
    const double windows = problem.strips * std::min(per_span - 1, blocks / 2);
    const double far = level.block > kNearBlock ? kFar : 1.0;
    const double transform = far * model.transform * block * depth;
    costs.transform += transform * (pieces * problem.channels + kWindow * windows);
    costs.products += model.product * block *
                      ((pairs + kSpectrum * pieces) * problem.channels + kWeight * windows);
    costs.inverse += transform * kInverse * blocks * problem.channels;
  }
  const double diagonal = std::min(static_cast<double>(schedule.diagonal), problem.rows);
  costs.diagonal = model.direct * (problem.rows * (diagonal / 2 + kRow) * problem.channels +
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
    const Problem problem{n, static_cast<double>(k), channels};
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
