#pragma once

#include <span>

#include "convbasis/types.h"
#include "core/thread_pool.h"
#include "cpu/key_arrays.h"
#include "cpu/visible.h"

namespace convbasis {

/// Exact attention of the listed rows of one head, in rising order of what they see, in tiles: rows
/// of `out` and `lse` (which may be empty) that are not listed are left alone. The keys are in the
/// order of `visible`. O(rows n d).
template <class T>
void exact_head(const View<const T, 2>& query, const KeyArrays<T>& keys, double scale,
                const VisibleKeys& visible, std::span<const index_t> listed, const View<T, 2>& out,
                const View<T, 1>& lse, const Exec& exec);

}  // namespace convbasis
