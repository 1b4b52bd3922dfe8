#pragma once

#include <span>

#include "convbasis/types.h"
#include "core/thread_pool.h"
#include "cpu/key_arrays.h"
#include "cpu/visible.h"

namespace convbasis {

/// Rows of the fastest tile, for as many channels.
template <class T>
[[nodiscard]] index_t exact_tile_rows(index_t head_dim, index_t channels);

/// Exact attention of at most exact_tile_rows rows of one head, in rising order of what they see;
/// other rows of `out` and `lse` (which may be empty) are left alone. The keys are in the order of
/// `visible`. O(rows n d).
template <class T>
void exact_tile(const View<const T, 2>& query, const KeyArrays<T>& source, double scale,
                const VisibleKeys& visible, std::span<const index_t> rows, const View<T, 2>& out,
                const View<T, 1>& lse);

/// Exact attention of few listed rows, in any order: row i of `out` is that of listed[i]. From
/// `packed` keys where there are any. O(rows keys d).
template <class T>
void attend_rows(const View<const T, 2>& query, const KeyValueRows<T>& source,
                 const Panels<T>* packed, double scale, const VisibleKeys& visible, index_t keys,
                 std::span<const index_t> listed, const View<T, 2>& out, const View<T, 1>& lse,
                 const Exec& exec);

}  // namespace convbasis
