#pragma once

#include <span>

#include "convbasis/basis.h"
#include "convbasis/options.h"
#include "convbasis/report.h"
#include "convbasis/types.h"

namespace convbasis {

/// Gradients of exact_attention: of a loss L by query, key and value, given grad_output = dL/dY of
/// Y = f V with f = softmax(scale * Q K^T). With dS = f o (dY V^T - diag(rowsum(dY o Y))),
///
///     dV = f^T dY,   dQ = scale * dS K,   dK = scale * dS^T Q.
///
/// f is computed again tile by tile, O(n d) memory. query (batch, heads, n, d),
/// key (batch, kv_heads, m, d), value (batch, kv_heads, m, dv), grad_output (batch, heads, n, dv);
/// grad_query, grad_key and grad_value have the shapes of query, key and value. Gradients by a
/// shared key head are sums over its query heads. A row without visible key gives 0.
///
/// `heads` lists flat query heads to compute, b * heads + h; empty = all. grad_query of others is
/// left untouched; so are grad_key and grad_value of a key head none of whose query heads is
/// listed, and the others sum over the listed ones.
///
/// Throws InvalidArgument when shapes or mask do not fit, and, with gradients partly written, when
/// a logit overflows. O(n m d) a head.
template <class T>
void exact_attention_backward(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                              View<const T, 4> grad_output, View<T, 4> grad_query,
                              View<T, 4> grad_key, View<T, 4> grad_value,
                              const AttentionOptions& options = {},
                              std::span<const index_t> heads = {}, const Exec& exec = {});

/// Which gradient of attention through strips.
enum class Gradient {
  /// The exact derivative of the approximate function: the kernels of the logits are taken as the
  /// products of query rows with the keys at the strips' starts, which are held fixed. About three
  /// times the cost of the forward pass.
  basis,
  /// The gradient of exact attention, with the softmax replaced by its approximation (Conv-Basis,
  /// arXiv 2405.05219, the theorem on training): a product of the strips with d * (dv + 1) channels
  /// for dQ, and as many transposed ones for dK.
  attention
};

/// What conv_attention_backward did.
struct BackwardReport {
  std::vector<index_t> rows_exact;  ///< (batch, heads): rows computed one by one
  StageSeconds seconds;             ///< normalize includes the forward pass's own
};

/// Gradients of conv_attention by query, key and value, given grad_output = dL/dY.
///
/// lower, upper and value as conv_attention takes them; query (batch, heads, n, d) and
/// key (batch, kv_heads, num_columns, d) are what the logits were recovered from, with `scale`;
/// grad_output (batch, heads, n, dv). grad_query has the shape of query and is written for the
/// listed heads; grad_key and grad_value have the shapes of key and value, and gradients are added
/// to what they hold, over the listed query heads of a shared key head in order. `heads` as in
/// exact_attention_backward.
///
/// Rows that rounding spoiled in the forward pass are computed one by one, in O(n d). The forward
/// pass is run again; memory O(k n + n d). Results do not depend on the number of threads. Throws
/// InvalidArgument when shapes do not fit.
template <class T>
BackwardReport conv_attention_backward(const BasisView<T>& lower, const BasisView<T>* upper,
                                       View<const T, 4> query, View<const T, 4> key,
                                       View<const T, 4> value, View<const T, 4> grad_output,
                                       View<T, 4> grad_query, View<T, 4> grad_key,
                                       View<T, 4> grad_value, double scale, Gradient gradient,
                                       std::span<const index_t> heads = {}, const Exec& exec = {});

}  // namespace convbasis
