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
