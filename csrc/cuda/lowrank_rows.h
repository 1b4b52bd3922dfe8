#pragma once

#include "cuda/lowrank_states.h"

namespace convbasis::cuda {

/// What attend_rows writes; all but `out` may be empty. Numbers of rows are (all heads, rows).
template <class T>
struct RowResults {
  Array<T> out;
  Array<T> lse = {};
  double* sums = nullptr;           ///< of the weights
  std::int32_t* spoiled = nullptr;  ///< flagged where the weights sum to no positive number
  bool divides = true;              ///< false: out is the sums of weights times values themselves
};

/// Divides the sums of weights times values by the sums of weights, for all rows of the heads: of
/// the chunks before a row by its features and their state, of the keys of its own chunk (when
/// causal) by weights, one by one. out and lse of flagged rows wait for others.
///
/// For n rows, rank r, c channels, head_dim d and chunks of b keys: 2 n r (c + 1) FLOP of products
/// with states and n b (d + c) within chunks; (r + b) (c + 1) numbers are read for each tile of
/// 64 to 256 rows.
template <class T>
void attend_rows(const LowRankHeads<T>& heads, const ChunkStates<T>& states, const Array<T>& query,
                 const Array<T>& value, bool is_causal, double scale, const RowResults<T>& results,
                 const Stream& stream);

}  // namespace convbasis::cuda
