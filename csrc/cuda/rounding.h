#pragma once

#include "cuda/element.h"
#include "cuda/level_plan.h"
#include "cuda/strips.h"

namespace convbasis::cuda {

constexpr index_t kErrorRows = 64;  // no schedule has smaller blocks

/// Squares of the errors that the transforms of all levels are expected to leave in a row, summed
/// over channels: one number for each kErrorRows rows, (all heads, granules).
struct RoundingErrors {
  /// Sums of squares of each row of x, (all heads, columns); null: all are 1.
  const double* row_squares;
  index_t columns, granules;
  double* squares;
};

/// Adds those of one plan, whose tables are on the device. The estimate of the CPU's rounding.cpp.
template <class T>
void add_rounding(const Strips<T>& strips, const LevelPlan& plan, const Window* windows,
                  const Slot* inputs, const Slot* outputs, const Tile* tiles,
                  const RoundingErrors& errors, const Stream& stream);

/// Of each row of x: the sum of squares, (all heads, rows), and of each head the largest magnitude.
template <class T>
void measure_rows(const Array<T>& x, index_t all_heads, double* squares, double* peaks,
                  const Stream& stream);

}  // namespace convbasis::cuda
