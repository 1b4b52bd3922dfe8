#pragma once

#include "cuda/element.h"
#include "cuda/exp.h"
#include "cuda/gpu_schedule.h"

namespace convbasis::cuda {

/// What the forward pass of all heads leaves behind. Numbers of each row are (all heads, rows).
template <class T>
struct HeadsForward {
  Weights<T> weights;
  std::vector<Schedule> schedules;     ///< of each triangle
  DeviceBuffer<double> sums;           ///< of the weights
  DeviceBuffer<double> lse;            ///< empty unless a backward pass follows
  DeviceBuffer<double> peaks;          ///< the largest |value| of each head
  DeviceBuffer<std::int32_t> spoiled;  ///< 1 for rows that were summed one by one
};

/// out = D^-1 exp(H) V for the logits of all heads but those that are left out. Rows that rounding
/// may have spoiled are summed one by one; with `for_backward` also those that would be in products
/// with other matrices than V, in the same blocks and in those of `far`, if there is one.
template <class T>
[[nodiscard]] HeadsForward<T> attend_heads(const Triangles<T>& logits, const Array<T>& value,
                                           const Array<T>& out, const Array<T>& lse,
                                           bool for_backward, std::span<const Schedule> far,
                                           const Stream& stream);

/// How many rows of each head are flagged.
void count_spoiled(const std::int32_t* spoiled, index_t rows, const View<index_t, 2>& counts,
                   const Stream& stream);

}  // namespace convbasis::cuda
