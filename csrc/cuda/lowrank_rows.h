#pragma once

#include "cuda/lowrank_states.h"

namespace convbasis::cuda {

/// Divides the sums of weights times values by the sums of weights, for all rows of the heads: of
/// the chunks before a row by its features and their state, of the keys of its own chunk (when
/// causal) by weights, one by one. Flags rows whose weights sum to no positive number in `spoiled`
/// (all heads, rows); out and lse, which may be empty, wait for them.
///
/// For n rows, rank r, c channels, head_dim d and chunks of b keys: 2 n r (c + 1) FLOP of products
/// with states and n b (d + c) within chunks; (r + b) (c + 1) numbers are read for each tile of
/// 64 to 256 rows.
template <class T>
void attend_rows(const LowRankHeads<T>& heads, const ChunkStates<T>& states, const Array<T>& query,
                 const Array<T>& value, bool is_causal, double scale, std::int32_t* spoiled,
                 const Array<T>& out, const Array<T>& lse, const Stream& stream);

}  // namespace convbasis::cuda
