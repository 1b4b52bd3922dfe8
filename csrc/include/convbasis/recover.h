#pragma once

#include "convbasis/basis.h"
#include "convbasis/options.h"

namespace convbasis {

/// Where strips begin, before their kernels are formed.
struct StripStarts {
  index_t batch = 0, heads = 0, max_bases = 0;
  std::vector<index_t> starts;     ///< (batch, heads, max_bases), padded with n
  std::vector<index_t> num_bases;  ///< (batch, heads)
  std::vector<char> complete;      ///< (batch, heads); false: a later column differs from its strip
  bool seen_finite = false;  ///< the search has met every entry, and all are finite; see below
};

/// Finds where the strips of scale * Q K^T on and below the diagonal begin.
///
/// query (batch, heads, n, d), key (batch, kv_heads, m, d) with m <= n; keys past the last query
/// row are not looked at. Strips shorter than the window are not looked for. When num_bases is at
/// least the number of candidate columns, each of them is a strip of its own; with window 1 that is
/// exact attention. seen_finite spares a check of query and key: it is true only after a scan that
/// went through all columns, formed finite logits, which NaN and infinity never give, and looked at
/// the last keys. Cost: scan O(n T d), bisect O(k log n T d) a head, memory O(n d + T).
/// Throws InvalidArgument when a shape or an option is wrong.
template <class T>
[[nodiscard]] StripStarts recover_starts(View<const T, 4> query, View<const T, 4> key, double scale,
                                         const RecoverOptions& options, const Exec& exec = {});

/// Fills kernels (batch, heads, k, n) from the columns of scale * Q K^T at the given starts;
/// entries past the last row and strips past num_bases are set to zero. False when a logit is not
/// finite. O(k n d) a head, as products of tiles.
template <class T>
bool recover_kernels(View<const T, 4> query, View<const T, 4> key, View<const index_t, 3> starts,
                     View<const index_t, 2> num_bases, double scale, View<T, 4> kernels,
                     const Exec& exec = {});

/// recover_starts, then recover_kernels. The logits of the result differ from the given ones by at
/// most 2 epsilon when these are epsilon-close to a (T, delta)-non-degenerate k-conv basis.
template <class T>
[[nodiscard]] ConvBasis<T> recover_basis(View<const T, 4> query, View<const T, 4> key, double scale,
                                         const RecoverOptions& options = {}, const Exec& exec = {});

/// Largest |scale * q_i . k_j - basis(i, j)| per head over the causal entries of the listed query
/// rows, (batch, heads, rows); an empty view means every row, which makes it a true bound at a
/// cost of O(n^2 d). deviation is (batch, heads).
template <class T>
void logit_deviation(View<const T, 4> query, View<const T, 4> key, double scale,
                     const BasisView<T>& basis, View<const index_t, 3> rows,
                     View<double, 2> deviation, const Exec& exec = {});

}  // namespace convbasis
