#pragma once

#include <vector>

#include "convbasis/options.h"
#include "convbasis/types.h"

namespace convbasis {

/// Norms of rows, from which the range of the logits follows without forming them:
/// |scale * q_i . (k_j - centre)| <= query[i] * key[j]. Softmax does not change when one vector is
/// subtracted from all keys.
template <class T>
struct LogitNorms {
  std::vector<T> centre;       ///< (batch, kv_heads, d), the mean key
  std::vector<double> query;   ///< (batch, heads, n_q), of scale * q_i
  std::vector<double> key;     ///< (batch, kv_heads, n_kv), of k_j - centre; 0 for unseen keys
  std::vector<double> radius;  ///< (batch, heads), the largest product; infinity if it overflows
};

/// The norms are bounds: rounding counts, here and in centred keys and scaled queries of type T.
/// With options.is_causal, keys past the last query are not looked at; options.mask is not either,
/// as it only narrows the range. `left_out` (batch, kv_heads, n_kv) or empty tells keys that do not
/// count for the mean and for the radius, since they are taken exactly; their norms are given all
/// the same. query (batch, heads, n_q, d), key (batch, kv_heads, n_kv, d). O((n_q + n_kv) d) a
/// head.
template <class T>
[[nodiscard]] LogitNorms<T> logit_norms(View<const T, 4> query, View<const T, 4> key,
                                        const AttentionOptions& options = {},
                                        View<const bool, 3> left_out = {}, const Exec& exec = {});

/// Largest |scale * q_i . (k_j - centre)| of some rows of each head, (batch, heads): `rows` of
/// them, evenly spaced, over the keys that is_causal leaves. A lower bound of the true range, which
/// shows how loose the radius is. O(rows n_kv d) a head.
template <class T>
[[nodiscard]] std::vector<double> sampled_radius(View<const T, 4> query, View<const T, 4> key,
                                                 const LogitNorms<T>& norms, index_t rows,
                                                 const AttentionOptions& options = {},
                                                 const Exec& exec = {});

}  // namespace convbasis
