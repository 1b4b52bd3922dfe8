#pragma once

#include <span>

#include "convbasis/basis.h"
#include "convbasis/options.h"
#include "convbasis/report.h"

namespace convbasis {

/// softmax(scale * Q K^T) V in tiles with an online softmax, O(n d) memory.
///
/// query (batch, heads, n, d), key (batch, kv_heads, m, d), value (batch, kv_heads, m, dv),
/// out (batch, heads, n, dv), lse (batch, heads, n) or an empty view. A row without visible key
/// gives 0 and lse -inf. options.mask is alike for all heads; tiles of keys that it hides are left
/// out, so that a sliding window costs O(n size d). `heads` lists flat head numbers to compute, b *
/// heads + h; empty = all, others are left untouched. Throws InvalidArgument when shapes or mask do
/// not fit, and, with out partly written, when a logit overflows. O(n m d) a head.
template <class T>
void exact_attention(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                     View<T, 4> out, View<T, 3> lse, const AttentionOptions& options = {},
                     std::span<const index_t> heads = {}, const Exec& exec = {});

/// Exact attention of listed query rows: rows (batch, heads, r), out (batch, heads, r, dv),
/// lse (batch, heads, r) or empty; `heads` as above. O(r m d) a head.
template <class T>
void attention_rows(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                    View<const index_t, 3> rows, View<T, 4> out, View<T, 3> lse,
                    const AttentionOptions& options = {}, std::span<const index_t> heads = {},
                    const Exec& exec = {});

/// D^-1 exp(H) V for logits H given as a conv basis (Conv-Basis, arXiv 2405.05219, Algorithm 1).
///
/// lower holds the logits on and below the diagonal. upper is null for causal attention; otherwise
/// it holds the strictly upper logits with both axes reversed (its lag 0 is not used), and both
/// num_columns must be n. value (batch, kv_heads, num_columns, dv), out (batch, heads, n, dv), lse
/// (batch, heads, n) or empty; `heads` as above.
///
/// Rounding: a row whose error from the FFT blocks may be above 1e-4 relative (float), 2.5e-12
/// (double), or whose weights underflow, is summed directly with a softmax of its own, in O(n d),
/// and counted in rows_exact.
template <class T>
ForwardReport conv_attention(const BasisView<T>& lower, const BasisView<T>* upper,
                             View<const T, 4> value, View<T, 4> out, View<T, 3> lse,
                             std::span<const index_t> heads = {}, const Exec& exec = {});

/// Listed rows of what conv_attention computes, each summed directly: rows (batch, heads, r), out
/// (batch, heads, r, dv). O(r n d) a head: a cheap look at the error before all rows are computed.
template <class T>
void conv_attention_rows(const BasisView<T>& lower, const BasisView<T>* upper,
                         View<const T, 4> value, View<const index_t, 3> rows, View<T, 4> out,
                         std::span<const index_t> heads = {}, const Exec& exec = {});

/// The first of the arrays that has a NaN or infinite element, else arrays.size(). Any strides.
template <class T>
[[nodiscard]] index_t first_not_finite(std::span<const View<const T, 4>> arrays,
                                       const Exec& exec = {});

/// False when an element is NaN or infinite. Any strides.
template <class T>
[[nodiscard]] bool all_finite(View<const T, 4> array, const Exec& exec = {});

/// Euclidean norm of every row, norms (batch, heads, rows); the largest number for one that
/// overflows. Any strides.
template <class T>
void row_norms(View<const T, 4> array, View<double, 3> norms, const Exec& exec = {});

}  // namespace convbasis
