#pragma once

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "convbasis/error.h"
#include "convbasis/options.h"
#include "convbasis/types.h"

namespace convbasis {

/// "(2, 4, 128, 64)"
template <std::size_t N>
[[nodiscard]] std::string to_string(const std::array<index_t, N>& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < N; ++axis)
    text += (axis > 0 ? ", " : "") + std::to_string(shape[axis]);
  return text + ")";
}

/// Throws InvalidArgument in the form "[function] argument has shape ...; expected ...".
template <std::size_t N>
void require_shape(const char* function, const char* argument, const std::array<index_t, N>& got,
                   const std::array<index_t, N>& expected, const char* why) {
  if (got == expected) return;
  throw InvalidArgument("[" + std::string(function) + "] " + argument + " has shape " +
                        to_string(got) + "; expected " + to_string(expected) + " " + why);
}

inline void require(bool rule, const char* function, const std::string& message) {
  if (!rule) throw InvalidArgument("[" + std::string(function) + "] " + message);
}

/// heads is a multiple of kv_heads.
inline void require_groups(const char* function, index_t heads, index_t kv_heads) {
  require(kv_heads > 0 ? heads % kv_heads == 0 : heads == 0, function,
          "key has " + std::to_string(kv_heads) + " heads; expected a divisor of the " +
              std::to_string(heads) + " query heads");
}

/// query (b, h, n, d), key (b, g, m, d) and value (b, g, m, dv) fit together.
template <class T>
void require_attention(const char* function, const View<const T, 4>& query,
                       const View<const T, 4>& key, const View<const T, 4>& value) {
  require(query.shape[3] > 0, function, "query has head_dim 0; expected at least 1");
  const index_t batch = query.shape[0], kv_heads = key.shape[1];
  require_groups(function, query.shape[1], kv_heads);
  require_shape(function, "key", key.shape, {batch, kv_heads, key.shape[2], query.shape[3]},
                "to match query");
  require_shape(function, "value", value.shape, {batch, kv_heads, key.shape[2], value.shape[3]},
                "to match key");
}

[[nodiscard]] inline double scale_of(const AttentionOptions& options, index_t head_dim) {
  return options.scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
}

/// The matrix of one head: (rows, columns).
template <class T>
[[nodiscard]] View<T, 2> head_view(const View<T, 4>& array, index_t batch, index_t head) {
  return {array.data + batch * array.strides[0] + head * array.strides[1],
          {array.shape[2], array.shape[3]},
          {array.strides[2], array.strides[3]}};
}

/// One number a row of one head; an empty view stays empty.
template <class T>
[[nodiscard]] View<T, 1> row_view(const View<T, 3>& array, index_t batch, index_t head) {
  if (array.data == nullptr) return {};
  return {array.data + batch * array.strides[0] + head * array.strides[1],
          {array.shape[2]},
          {array.strides[2]}};
}

/// Flat head number to (batch, head), and to the key head that it shares.
struct HeadIndex {
  index_t batch, head, kv_head;
};
[[nodiscard]] inline HeadIndex head_index(index_t flat, index_t heads, index_t kv_heads) {
  const index_t head = flat % heads;
  return {flat / heads, head, head / (heads / kv_heads)};
}

/// The listed flat heads, or all of them when none is listed.
class HeadList {
 public:
  HeadList(const char* function, std::span<const index_t> listed, index_t total)
      : listed_(listed), total_(total) {
    for (index_t flat : listed)
      require(flat >= 0 && flat < total, function,
              "heads holds " + std::to_string(flat) + "; expected 0 <= head < " +
                  std::to_string(total));
  }
  [[nodiscard]] index_t size() const {
    return listed_.empty() ? total_ : static_cast<index_t>(listed_.size());
  }
  [[nodiscard]] index_t operator[](index_t i) const {
    return listed_.empty() ? i : listed_[static_cast<std::size_t>(i)];
  }

 private:
  std::span<const index_t> listed_;
  index_t total_;
};

/// Every listed row is a query row.
inline void require_rows(const char* function, const View<const index_t, 3>& rows, index_t n) {
  for (index_t b = 0; b < rows.shape[0]; ++b)
    for (index_t h = 0; h < rows.shape[1]; ++h)
      for (index_t r = 0; r < rows.shape[2]; ++r)
        require(rows(b, h, r) >= 0 && rows(b, h, r) < n, function,
                "rows holds " + std::to_string(rows(b, h, r)) + "; expected 0 <= row < " +
                    std::to_string(n));
}

/// Row numbers of one head.
[[nodiscard]] inline std::vector<index_t> listed_rows(const View<const index_t, 3>& rows,
                                                      index_t batch, index_t head) {
  std::vector<index_t> listed(static_cast<std::size_t>(rows.shape[2]));
  for (index_t r = 0; r < rows.shape[2]; ++r)
    listed[static_cast<std::size_t>(r)] = rows(batch, head, r);
  return listed;
}

}  // namespace convbasis
