#pragma once

#include <span>

#include "convbasis/options.h"
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
/// Throws InvalidArgument when shapes do not fit, and, with gradients partly written, when a logit
/// overflows. O(n m d) a head.
template <class T>
void exact_attention_backward(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                              View<const T, 4> grad_output, View<T, 4> grad_query,
                              View<T, 4> grad_key, View<T, 4> grad_value,
                              const AttentionOptions& options = {},
                              std::span<const index_t> heads = {}, const Exec& exec = {});

}  // namespace convbasis
