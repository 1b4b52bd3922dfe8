#pragma once

#include "convbasis/types.h"

namespace convbasis {

/// Nanoseconds that one thread takes for the elementary steps, from which schedules and break_even
/// follow. Only their ratios matter.
struct CostModel {
  double transform;  ///< a transform of L points takes L log2 L of them for each channel
  double product;    ///< complex multiply-add of a product of spectra
  double direct;     ///< multiply-add of the directly summed diagonal
  double exact;      ///< multiply-add of exact attention, its exponentials included
  double entry;      ///< exponential and sums of one entry of a kernel
};

/// The model of float or double in this process: measured at the first need, in some milliseconds
/// on the calling thread, and rounded to steps of 2^(1/16), unless it was set before.
template <class T>
[[nodiscard]] CostModel cost_model();

/// Replaces the model, for the calls that begin later. Results are repeatable bit for bit, across
/// processes too, when it is the same. Throws InvalidArgument unless all times are positive and
/// finite.
template <class T>
void set_cost_model(const CostModel& model);

/// Number of bases from which exact attention of this size is expected to be cheaper: a power of
/// two or seq, so that noise of the measurement seldom changes it, and at least min(seq, 64).
template <class T>
[[nodiscard]] index_t break_even(index_t seq, index_t head_dim, index_t value_dim);

}  // namespace convbasis
