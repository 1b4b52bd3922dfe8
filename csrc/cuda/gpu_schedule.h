#pragma once

#include <span>

#include "core/schedule.h"
#include "cuda/element.h"

namespace convbasis::cuda {

/// What a GPU does in a nanosecond. The defaults are estimates for an H100, which no run has
/// confirmed: 0.75 of the bandwidth that large copies reach, and 0.45 of the peak of float32.
struct GpuModel {
  double bytes = 2200;          ///< of device memory, read or written
  double cached = 5000;         ///< bytes of the cache that all multiprocessors share
  double flops = 30000;         ///< in products of spectra
  double direct_flops = 30000;  ///< in direct tiles
  double multiprocessors = 132;
  double launch = 3000;                    ///< nanoseconds from one small kernel to the next
  index_t workspace = index_t{256} << 20;  ///< bytes of one chunk of work, about
};

/// The model for products of rows with elements of this type, which tensor cores may take part in:
/// half of what the card's libraries reach, shared by the two or three products that one takes.
[[nodiscard]] GpuModel model_for(Element element);

/// Bytes of device memory that the steps of one level move, of all these heads, and its FLOP. Of a
/// row of a block, channel and piece: gathered and padded (3 numbers), transformed (4), read by the
/// products (2); of an output: written by the products (2), transformed (4), added (3).
struct LevelWork {
  double windows, gather, transforms, products, outputs, flops;
  double slots;  ///< pieces and outputs
};
[[nodiscard]] LevelWork level_work(std::span<const StripLayout> heads, double channels, double size,
                                   const Level& level);

/// What direct tiles move of device memory, read of the cache, and compute.
struct DirectWork {
  double bytes = 0, cached = 0, flops = 0;
  double longest = 0;  ///< FLOP of one tile of outputs, which one multiprocessor sums
};
[[nodiscard]] DirectWork direct_work(std::span<const StripLayout> heads, double channels,
                                     double size, index_t diagonal);

/// Estimated nanoseconds of one level that all these heads share.
[[nodiscard]] double level_cost(std::span<const StripLayout> heads, double channels, double size,
                                const Level& level, const GpuModel& model);

/// Estimated nanoseconds of a schedule that all these heads share.
[[nodiscard]] double schedule_cost(std::span<const StripLayout> heads, index_t channels,
                                   index_t element_size, const Schedule& schedule,
                                   const GpuModel& model);

/// The cheapest one, of at most two levels.
[[nodiscard]] Schedule choose_schedule(std::span<const StripLayout> heads, index_t channels,
                                       index_t element_size, const GpuModel& model);

}  // namespace convbasis::cuda
