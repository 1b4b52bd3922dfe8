#pragma once

#include <vector>

#include "cpu/dense_rows.h"

namespace convbasis {

/// Key blocks by their share of the attention of a query block's mean query, (query blocks, most).
template <class T>
struct RankedBlocks {
  std::vector<index_t> blocks;  ///< by falling share, then -1
  std::vector<T> shares;  ///< heavy keys apart, of the attention to all keys up to the block's
};

/// For each query block the `most` key blocks before its near ones that have the largest shares.
/// O(n^2 d / 64).
template <class T>
[[nodiscard]] RankedBlocks<T> rank_key_blocks(const HeadArrays<T>& head,
                                              std::span<const index_t> heavy, index_t near_blocks,
                                              index_t most, const Exec& exec);

/// How many of its ranked blocks each query block takes when `mean` are to be taken in the mean,
/// and none of `near_blocks`: those with the largest shares of all.
template <class T>
[[nodiscard]] std::vector<index_t> take_largest(const RankedBlocks<T>& ranked, index_t rows,
                                                index_t near_blocks, index_t mean);

}  // namespace convbasis
