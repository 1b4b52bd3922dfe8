#pragma once

#include <span>
#include <vector>

#include "convbasis/options.h"
#include "convbasis/types.h"

namespace convbasis {

/// Attention to listed keys alone, by exact weights, joined with attention to the other keys that
/// stands in `out` with the logs of its row sums (-inf where a row sees none): a softmax of two
/// parts. The logits are scale * query . (key - centre). O(n_q columns (d + dv)).
template <class T>
void join_exact_columns(const View<const T, 2>& query, const View<const T, 2>& key,
                        const View<const T, 2>& value, std::span<const index_t> columns,
                        std::span<const double> centre, double scale,
                        const AttentionOptions& options, const View<T, 2>& out, double* log_sums,
                        const Exec& exec);

}  // namespace convbasis
