#include "cuda/gpu_schedule.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/buffer.h"

namespace convbasis::cuda {
namespace {

constexpr index_t kMinBlock = 64, kMaxBlock = 8192;
// Direct tiles sum a row's products one after another. In float a longer sum, most of all of
// products with 16-bit weights, leaves too little of the error that attention lets through: it
// would form every row again, one by one.
constexpr index_t kMostDirect = 2048;

constexpr double kLaunches = 7;      // of one chunk of a level
constexpr index_t kDirectTile = 64;  // outputs, and channels, of a direct tile

double ratio(index_t a, index_t b) { return static_cast<double>(a) / static_cast<double>(b); }

}  // namespace

GpuModel model_for(Element element) {
  GpuModel model;
  if (element == Element::bfloat16) model.direct_flops = 150000;
  if (element == Element::float16) model.direct_flops = 80000;
  return model;
}

LevelWork level_work(std::span<const StripLayout> heads, double channels, double size,
                     const Level& level) {
  double pieces = 0, outputs = 0, pairs = 0, windows = 0;
  for (const StripLayout& layout : heads) {
    if (layout.count() == 0) continue;
    const index_t blocks = ceil_div(layout.rows, level.block);
    const double per_span = std::min(ratio(level.span, level.block), static_cast<double>(blocks));
    double of_head = 0;
    for (index_t r = 0; r < layout.count(); ++r) {
      of_head +=
          static_cast<double>(ceil_div(layout.end(r), level.block) - layout.begin(r) / level.block);
      windows += static_cast<double>(max_block_lag(layout, r, level));
    }
    const double later = (per_span - 1) / per_span;
    pieces += later * of_head;
    outputs += later * static_cast<double>(blocks);
    pairs += of_head * (per_span - 1) / 2;
  }
  const auto block = static_cast<double>(level.block);
  const double row = size * block * channels;  // bytes of one number for each row and channel
  return {.windows = 9 * size * block * windows,
          .gather = 3 * row * pieces,
          .transforms = 4 * row * (pieces + outputs),
          .products = 2 * row * (pieces + outputs),
          .outputs = 3 * row * outputs,
          .flops = 8 * block * channels * pairs,
          .slots = pieces + outputs};
}

DirectWork direct_work(std::span<const StripLayout> heads, double channels, double size,
                       index_t diagonal) {
  DirectWork work;
  const double tile_channels = std::ceil(channels / kDirectTile) * kDirectTile;
  for (const StripLayout& layout : heads) {
    if (layout.count() == 0) continue;
    const auto rows = static_cast<double>(layout.rows);
    const double most = std::min(static_cast<double>(diagonal), rows);
    const double terms = (most + kDirectTile) / 2;
    work.flops += 2 * rows * tile_channels * terms;
    work.bytes += 2 * rows * tile_channels * size;
    work.cached += rows * tile_channels * size * terms / kDirectTile;
    work.longest = std::max(work.longest, 2 * most * kDirectTile * kDirectTile);
  }
  return work;
}

double level_cost(std::span<const StripLayout> heads, double channels, double size,
                  const Level& level, const GpuModel& model) {
  const LevelWork work = level_work(heads, channels, size, level);
  const double bytes = work.windows + work.gather + work.transforms + work.products + work.outputs;
  const double held = 4 * size * static_cast<double>(level.block) * channels * work.slots;
  const double chunks = std::ceil(held / static_cast<double>(model.workspace));
  return bytes / model.bytes + work.flops / model.flops + chunks * kLaunches * model.launch;
}

double schedule_cost(std::span<const StripLayout> heads, index_t channels, index_t element_size,
                     const Schedule& schedule, const GpuModel& model) {
  const auto width = static_cast<double>(channels), size = static_cast<double>(element_size);
  const DirectWork work = direct_work(heads, width, size, schedule.diagonal);
  const double direct =
      work.flops / model.direct_flops + work.bytes / model.bytes + work.cached / model.cached;
  const double longest = work.longest * model.multiprocessors / model.direct_flops;
  double cost = model.launch + std::max(direct, longest);
  for (const Level& level : schedule.levels) cost += level_cost(heads, width, size, level, model);
  return cost;
}

Schedule choose_schedule(std::span<const StripLayout> heads, index_t channels, index_t element_size,
                         const GpuModel& model) {
  index_t rows = 1;
  for (const StripLayout& layout : heads) rows = std::max(rows, layout.rows);
  const auto whole = static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
  Schedule best;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](Schedule schedule) {
    if (schedule.diagonal > kMostDirect) return;
    const double cost = schedule_cost(heads, channels, element_size, schedule, model);
    if (cost >= least) return;
    least = cost;
    best = std::move(schedule);
  };
  consider({{}, std::max(whole, kMinBlock)});
  for (index_t outer = kMinBlock; outer <= kMaxBlock && 2 * outer <= whole; outer *= 2) {
    consider({{{outer, whole}}, outer});
    for (index_t inner = kMinBlock; 2 * inner <= outer; inner *= 2)
      consider({{{outer, whole}, {inner, outer}}, inner});
  }
  return best;
}

}  // namespace convbasis::cuda
