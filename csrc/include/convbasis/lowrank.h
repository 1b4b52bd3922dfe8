#pragma once

#include <span>
#include <vector>

#include "convbasis/options.h"
#include "convbasis/types.h"

namespace convbasis {

/// What stands for the exponential in one query head.
struct HeadPolynomial {
  std::vector<double> coefficients;    ///< P, constant first
  std::vector<double> centre;          ///< subtracted from all keys, head_dim numbers; empty = 0
  std::vector<index_t> exact_rows;     ///< rows computed by exact attention, rising
  std::vector<index_t> exact_columns;  ///< keys whose weights are exp(logit) itself, rising
};

/// What polynomial_attention did, (batch, heads).
struct LowRankReport {
  std::vector<index_t>
      rows_exact;             ///< the listed ones, and those whose weights summed to 0 or less
  std::vector<index_t> rank;  ///< features of a row, C(head_dim + degree, degree)
};

/// D^-1 (W o P(scale * q . (k - centre))) V by symmetric monomials of queries and keys, D the row
/// sums; neither n x n nor n x rank numbers are ever held. Sources: AS23 (arXiv 2302.13214);
/// Conv-Basis (arXiv 2405.05219), section on low-rank approximation with masks; for exact rows and
/// columns Support Basis (arXiv 2510.01643).
///
/// query (batch, heads, n, d), key (batch, kv_heads, m, d), value (batch, kv_heads, m, dv),
/// out (batch, heads, n, dv), lse (batch, heads, n) or an empty view: the log of the row sums, with
/// what the centre took off. One polynomial for each flat head b * heads + h. `heads` lists flat
/// heads to compute; empty = all, others are left untouched. A row without visible key gives 0 and
/// lse -inf.
///
/// O((n + m) rank dv) a head without mask, causal, and for windows, all of which are summed without
/// a difference; as much for each distinct row or column of a mask. Later keys do not change
/// earlier rows of causal attention, bit for bit. Throws InvalidArgument when arguments do not fit.
template <class T>
LowRankReport polynomial_attention(View<const T, 4> query, View<const T, 4> key,
                                   View<const T, 4> value, View<T, 4> out, View<T, 3> lse,
                                   std::span<const HeadPolynomial> polynomials,
                                   const AttentionOptions& options = {},
                                   std::span<const index_t> heads = {}, const Exec& exec = {});

/// The gradient of attention by query, key and value, given grad_output = dL/dY, with the softmax
/// replaced by the matrix f of polynomial_attention: products of f with d * (dv + 1) channels for
/// dQ, and as many transposed ones for dK.
///
/// Arguments as there; grad_output (batch, heads, n, dv). grad_query has the shape of query and is
/// written for the listed heads; grad_key and grad_value have the shapes of key and value, and
/// gradients are added to what they hold, over the listed query heads of a shared key head in
/// order.
///
/// Heads with exact rows or columns, or with weights of a row that sum to 0 or less, are
/// differentiated exactly; rows_exact counts all their rows. Throws Unsupported for a RowChange,
/// and for a RowWindow whose ends do not rise from row to row.
template <class T>
LowRankReport polynomial_attention_backward(
    View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
    View<const T, 4> grad_output, View<T, 4> grad_query, View<T, 4> grad_key, View<T, 4> grad_value,
    std::span<const HeadPolynomial> polynomials, const AttentionOptions& options = {},
    std::span<const index_t> heads = {}, const Exec& exec = {});

}  // namespace convbasis
