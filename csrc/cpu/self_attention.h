#pragma once

#include <memory>
#include <vector>

#include "convbasis/calibrate.h"
#include "core/shape.h"
#include "cpu/dense_rows.h"
#include "cpu/key_arrays.h"

namespace convbasis {

/// The arrays, and keys and values of each key head, which its query heads share.
template <class T>
struct SelfAttention<T>::Arrays {
  [[nodiscard]] index_t batch() const { return query.shape[0]; }
  [[nodiscard]] index_t heads() const { return query.shape[1]; }
  [[nodiscard]] index_t rows() const { return query.shape[2]; }
  [[nodiscard]] index_t head_dim() const { return query.shape[3]; }
  [[nodiscard]] index_t count() const { return batch() * heads(); }
  [[nodiscard]] HeadIndex at(index_t flat) const { return head_index(flat, heads(), kv_heads); }
  [[nodiscard]] const KeyArrays<T>& keys_of(const HeadIndex& head) const {
    return *keys[static_cast<std::size_t>(head.batch * kv_heads + head.kv_head)];
  }
  [[nodiscard]] View<const T, 2> queries_of(const HeadIndex& head) const {
    return head_view(query, head.batch, head.head);
  }
  [[nodiscard]] HeadArrays<T> head(index_t flat) const {
    return {queries_of(at(flat)), keys_of(at(flat)), channels, scale};
  }

  /// Throws InvalidArgument, in the name of `function`, where shapes of results do not fit.
  void require_results(const char* function, const View<T, 4>& out, const View<T, 3>& lse) const {
    require_shape(function, "out", out.shape, {batch(), heads(), rows(), channels},
                  "to match query and value");
    if (lse.data != nullptr)
      require_shape(function, "lse", lse.shape, {batch(), heads(), rows()}, "to match query");
  }

  View<const T, 4> query;
  index_t kv_heads, channels;
  double scale;
  std::vector<std::unique_ptr<const KeyArrays<T>>> keys;
};

}  // namespace convbasis
