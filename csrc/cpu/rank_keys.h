#pragma once

#include <vector>

#include "cpu/dense_rows.h"

namespace convbasis {

/// For each query block the `most` key blocks before its near ones that its mean query gives the
/// largest weight, heavy keys apart: (blocks, most), falling, then -1. O(n^2 d / 64).
template <class T>
[[nodiscard]] std::vector<index_t> rank_key_blocks(const HeadArrays<T>& head,
                                                   std::span<const index_t> heavy,
                                                   index_t near_blocks, index_t most,
                                                   const Exec& exec);

}  // namespace convbasis
