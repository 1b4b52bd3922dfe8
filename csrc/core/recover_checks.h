#pragma once

#include <cmath>

#include "core/shape.h"

namespace convbasis {

/// Options of recover_starts are in their ranges.
inline void require_options(const char* function, const RecoverOptions& options) {
  require(
      !options.num_bases || *options.num_bases >= 1, function,
      "num_bases is " + std::to_string(options.num_bases.value_or(0)) + "; expected at least 1");
  require(options.window >= 1, function,
          "window is " + std::to_string(options.window) + "; expected at least 1");
  require(options.delta >= 0 && std::isfinite(options.delta), function,
          "delta is " + std::to_string(options.delta) + "; expected a finite number >= 0");
  const double most = options.delta / (5 * static_cast<double>(options.window));
  require(options.epsilon >= 0 && options.epsilon <= most, function,
          "epsilon is " + std::to_string(options.epsilon) +
              "; expected 0 to delta / (5 * window) = " + std::to_string(most));
}

/// query (b, h, n, d) and key (b, g, m, d) fit together.
template <class T>
void require_query_key(const char* function, const View<const T, 4>& query,
                       const View<const T, 4>& key) {
  require(query.shape[3] > 0, function, "query has head_dim 0; expected at least 1");
  require_groups(function, query.shape[1], key.shape[1]);
  require_shape(function, "key", key.shape,
                {query.shape[0], key.shape[1], key.shape[2], query.shape[3]}, "to match query");
}

}  // namespace convbasis
