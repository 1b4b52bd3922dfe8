#pragma once

#include <span>
#include <variant>

#include "convbasis/types.h"

/// Masks with structure: which keys each query sees, in linear memory.
///
/// They do not own their arrays. AttentionOptions::is_causal goes with any of them: of the keys
/// that the mask shows, query i then sees only 0..i. A query that sees nothing gets output 0 and
/// lse -inf. Source: Conv-Basis (arXiv 2405.05219), section on low-rank approximation.
namespace convbasis::masks {

/// Query i sees keys start[i] <= j < stop[i]. Both of length n_q, start <= stop.
struct RowWindow {
  std::span<const index_t> start, stop;
};

/// List l is keys[offsets[l] .. offsets[l + 1]); offsets starts at 0, with one entry more than
/// there are lists.
struct KeyLists {
  std::span<const index_t> keys, offsets;
};

/// Query 0 sees first_row; query i + 1 sees what i does, plus list i of added, minus list i of
/// removed. n_q - 1 lists each. A key is added only where it is not seen, removed only where it is.
struct RowChange {
  std::span<const index_t> first_row;
  KeyLists added, removed;
};

/// Query i sees the keys of row pattern_of_row[i] of patterns (m, n_kv).
struct DistinctRows {
  std::span<const index_t> pattern_of_row;
  View<const bool, 2> patterns;
};

/// Key j is seen by the queries of row pattern_of_column[j] of patterns (m, n_q).
struct DistinctColumns {
  std::span<const index_t> pattern_of_column;
  View<const bool, 2> patterns;
};

/// Query i sees keys at a distance |i - j| < size, size at least 1.
struct SlidingWindow {
  index_t size = 1;
};

/// A sliding window, and global tokens, in rising order, that see every key and are seen by every
/// query. A token beyond the last query or key counts for the other.
struct Longformer {
  index_t window = 1;
  std::span<const index_t> global_tokens;
};

}  // namespace convbasis::masks

namespace convbasis {

/// Any of the masks; monostate sees everything.
using Mask = std::variant<std::monostate, masks::RowWindow, masks::RowChange, masks::DistinctRows,
                          masks::DistinctColumns, masks::SlidingWindow, masks::Longformer>;

}  // namespace convbasis
