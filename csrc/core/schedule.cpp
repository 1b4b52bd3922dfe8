#include "core/schedule.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "convbasis/recover.h"
#include "core/buffer.h"

namespace convbasis {
namespace {

// Single-thread flops a nanosecond, and nanoseconds, measured on an AVX-512 machine in float. Only
// their ratios matter, and these hold for double and for AVX2 too.
constexpr double kFftRate = 12, kProductRate = 55, kDirectRate = 70;
constexpr double kExactRate = 60;     // both products and the exponentials of exact attention
constexpr double kWindowTime = 0.5;   // an entry of a kernel window, gathered for its FFT
constexpr double kStripRowTime = 10;  // a row of a strip in a directly summed block
constexpr double kEntryTime = 10;     // an entry of a kernel: column, exp, row sum
constexpr index_t kFewBases = 64;  // break_even() is never below: small problems take microseconds
constexpr index_t kMinBlock = 64, kMaxBlock = 8192;

double fft_flops(index_t length) {
  const auto n = static_cast<double>(length);
  return 2.5 * n * std::log2(n);
}

/// What the cost of a problem depends on: strips are taken to be of one length.
struct Problem {
  double rows, strips, channels;
};

double level_cost(const Problem& problem, const Level& level) {
  const double block = static_cast<double>(level.block);
  const double blocks = std::ceil(problem.rows / block);
  const double per_span = std::min(static_cast<double>(level.span) / block, blocks);
  const double pieces = blocks + problem.strips;
  const double pairs = pieces * (per_span - 1) / 2;
  const double windows = problem.strips * std::min(per_span - 1, blocks / 2);
  return (pieces + blocks) * problem.channels * fft_flops(2 * level.block) / kFftRate +
         windows * (fft_flops(2 * level.block) / kFftRate + 2 * block * kWindowTime) +
         pairs * 8 * block * problem.channels / kProductRate;
}

double schedule_cost(const Problem& problem, const Schedule& schedule) {
  const double diagonal = std::min(static_cast<double>(schedule.diagonal), problem.rows);
  double cost = problem.rows * diagonal * problem.channels / kDirectRate +
                problem.strips * diagonal / 2 * kStripRowTime;
  for (const Level& level : schedule.levels) cost += level_cost(problem, level);
  return cost;
}

Schedule cheapest(const Problem& problem) {
  const auto rows = static_cast<std::uint64_t>(std::max(problem.rows, 1.0));
  const auto whole = static_cast<index_t>(std::bit_ceil(rows));
  Schedule best{{}, whole};
  double best_cost = schedule_cost(problem, best);
  const auto consider = [&](Schedule candidate) {
    const double cost = schedule_cost(problem, candidate);
    if (cost >= best_cost) return;
    best_cost = cost;
    best = std::move(candidate);
  };
  for (index_t outer = kMinBlock; outer <= kMaxBlock && outer < whole; outer *= 2) {
    consider({{{outer, whole}}, outer});
    for (index_t inner = kMinBlock; inner < outer; inner *= 2)
      consider({{{outer, whole}, {inner, outer}}, inner});
  }
  return best;
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

index_t max_block_lag(const StripLayout& strips, index_t strip, const Level& level) {
  if (strips.end(strip) <= strips.begin(strip)) return 0;
  const index_t last_block = (strips.rows - 1) / level.block;
  return std::min(level.span / level.block - 1, last_block - strips.begin(strip) / level.block);
}

Schedule choose_schedule(const StripLayout& strips, index_t channels) {
  return cheapest({static_cast<double>(strips.rows), static_cast<double>(strips.count()),
                   static_cast<double>(channels)});
}

index_t break_even(index_t seq, index_t head_dim, index_t value_dim) {
  if (seq <= 1) return seq;
  const auto n = static_cast<double>(seq), d = static_cast<double>(head_dim);
  const auto channels = static_cast<double>(value_dim);
  const double exact = n * n * (d + channels) / kExactRate;
  const auto is_cheaper = [&](index_t k) {
    const Problem problem{n, static_cast<double>(k), channels};
    const double kernels = problem.strips * n / 2 * kEntryTime;
    return schedule_cost(problem, cheapest(problem)) + kernels <= exact;
  };
  if (is_cheaper(seq)) return seq;
  index_t low = 1, high = seq;  // the cost grows with k
  while (high - low > 1) {
    const index_t middle = low + (high - low) / 2;
    (is_cheaper(middle) ? low : high) = middle;
  }
  return std::max(low, std::min(seq, kFewBases));
}

}  // namespace convbasis
