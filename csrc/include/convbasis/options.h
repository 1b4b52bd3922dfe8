#pragma once

#include <optional>

#include "convbasis/mask.h"
#include "convbasis/types.h"

namespace convbasis {

/// How strips are looked for (Conv-Basis, arXiv 2405.05219, Algorithms 2 and 3).
struct RecoverOptions {
  enum class Search {
    scan,   ///< every column's head is compared: O(n T d), needs no monotonicity
    bisect  ///< binary search between starts: O(k log n T d), needs epsilon <= delta / (5 T)
  };
  std::optional<index_t> num_bases;  ///< k, most strips a head; empty = up to break_even()
  index_t window = 16;               ///< T, leading entries of a column that are compared
  double delta = 1e-2;               ///< l1 distance over the window that marks a new strip
  double epsilon = 0.0;              ///< noise of one logit; the threshold is delta - 2 T epsilon
  Search search = Search::scan;
  std::optional<index_t> value_dim{};  ///< channels of value, for break_even(); empty = head_dim
};

/// What attention is computed.
struct AttentionOptions {
  std::optional<double> scale;  ///< of query . key; empty = 1 / sqrt(head_dim)
  bool is_causal = false;
  Mask mask{};  ///< of these keys, only those that is_causal leaves
};

}  // namespace convbasis
