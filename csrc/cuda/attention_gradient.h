#pragma once

#include "cuda/spoiled_gradient.h"

namespace convbasis::cuda {

/// The blocks of Gradient::attention's far products, one level; entries inside its blocks, or all
/// without a level, are near. By the estimated times of tiles and of that level.
[[nodiscard]] Schedule far_schedule(std::span<const StripLayout> heads, index_t head_dim,
                                    index_t value_dim, index_t element_size, const GpuModel& model);

/// grad_query = dS K and grad_key = dS^T Q of one triangle, in units, with dS = f o (dY V^T -
/// delta) and the softmax f of the strips: f o (x y^T) is diag(x) f diag(y), so that far entries
/// are dv + 1 products with f. Near ones, and rows that rounding spoiled, are formed tile by tile.
/// `shares` and delta_shares are dY and delta divided by the rows' sums; `key` is without its mean:
/// rows of dS sum to 0. Both gradients are of flat heads, and need not be set.
template <class T>
void differentiate_entries(const Strips<T>& weights, const Array<T>& shares,
                           const double* delta_shares, const SpoiledGradient<T>& spoiled,
                           const Schedule& far, const Array<T>& query, const Array<T>& key,
                           const Array<T>& grad_query, const Array<T>& grad_key,
                           const Stream& stream);

}  // namespace convbasis::cuda
