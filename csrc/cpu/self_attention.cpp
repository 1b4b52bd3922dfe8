#include "cpu/self_attention.h"

#include <algorithm>
#include <string>

#include "core/heads.h"
#include "cpu/exact_head.h"

namespace convbasis {
namespace {

constexpr const char* kName = "conv_attention";

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

}  // namespace

template <class T>
SelfAttention<T>::SelfAttention(View<const T, 4> query, View<const T, 4> key,
                                View<const T, 4> value, const AttentionOptions& options,
                                const Exec& exec) {
  require_attention(kName, query, key, value);
  const auto [batch, kv_heads, n, head_dim] = key.shape;
  require(n >= 1 && query.shape[2] == n, kName,
          "key has " + std::to_string(n) + " rows; expected as many as query, 1 or more");
  arrays_ = std::make_unique<Arrays>(
      Arrays{query, kv_heads, value.shape[3], scale_of(options, head_dim), {}});
  auto& keys = arrays_->keys;
  keys.resize(at(batch * kv_heads));
  for_each_head(exec, batch * kv_heads, [&, kv = kv_heads](index_t flat, const Exec& inside) {
    const HeadIndex head = head_index(flat, kv, kv);
    keys[at(flat)] = std::make_unique<const KeyArrays<T>>(head_view(key, head.batch, head.head),
                                                          head_view(value, head.batch, head.head),
                                                          std::span<const index_t>{}, inside);
  });
}

template <class T>
SelfAttention<T>::~SelfAttention() = default;
template <class T>
SelfAttention<T>::SelfAttention(SelfAttention&&) noexcept = default;
template <class T>
SelfAttention<T>& SelfAttention<T>::operator=(SelfAttention&&) noexcept = default;

template <class T>
void exact_rows(const SelfAttention<T>& attention, View<const index_t, 2> rows, View<T, 3> out,
                std::span<const index_t> heads, const Exec& exec) {
  const auto& arrays = attention.arrays();
  const HeadList list(kName, heads, arrays.count());
  const index_t count = rows.shape[1], n = arrays.rows();
  require_shape(kName, "rows", rows.shape, {list.size(), count}, "to match heads");
  require_shape(kName, "out", out.shape, {list.size(), count, arrays.channels},
                "to match rows and value");
  const View<const index_t, 3> every{
      rows.data, {1, list.size(), count}, {0, rows.strides[0], rows.strides[1]}};
  require_rows(kName, every, n);
  const VisibleKeys causal(true, n);
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const HeadIndex head = arrays.at(list[i]);
    const KeyArrays<T>& keys = arrays.keys_of(head);
    const View<T, 2> to{
        out.data + i * out.strides[0], {count, arrays.channels}, {out.strides[1], out.strides[2]}};
    attend_rows<T>(arrays.queries_of(head), keys, &keys.panels, arrays.scale, causal, n,
                   listed_rows(every, 0, i), to, {}, inside);
  });
}

template <class T>
void exact_blocks(const SelfAttention<T>& attention, std::span<const char> blocks, View<T, 4> out,
                  View<T, 3> lse, const Exec& exec) {
  const auto& arrays = attention.arrays();
  const index_t n = arrays.rows(), count = ceil_div(n, kKeyBlock);
  arrays.require_results(kName, out, lse);
  require(static_cast<index_t>(blocks.size()) == arrays.count() * count, kName,
          "blocks has " + std::to_string(blocks.size()) + " entries; expected one for each block");
  struct Tile {
    index_t flat, first, last;  // of the listed rows of all heads
  };
  std::vector<index_t> rows;
  std::vector<Tile> tiles;
  const index_t most = exact_tile_rows<T>(arrays.head_dim(), arrays.channels);
  for (index_t flat = 0; flat < arrays.count(); ++flat) {
    const auto first = static_cast<index_t>(rows.size());
    for (index_t i = 0; i < n; ++i)
      if (blocks[at(flat * count + i / kKeyBlock)] != 0) rows.push_back(i);
    // Head by head, which is kind to caches, and the tiles that see the most keys first.
    for (auto last = static_cast<index_t>(rows.size()); first < last; last -= most)
      tiles.push_back({flat, std::max(first, last - most), last});
  }
  const VisibleKeys causal(true, n);
  parallel_for(exec, static_cast<index_t>(tiles.size()), [&](index_t item, int) {
    const auto [flat, first, last] = tiles[at(item)];
    const HeadIndex head = arrays.at(flat);
    exact_tile<T>(arrays.queries_of(head), arrays.keys_of(head), arrays.scale, causal,
                  std::span(rows).subspan(at(first), at(last - first)),
                  head_view(out, head.batch, head.head), row_view(lse, head.batch, head.head));
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                         \
  template class SelfAttention<T>;                                                       \
  template void exact_rows(const SelfAttention<T>&, View<const index_t, 2>, View<T, 3>,  \
                           std::span<const index_t>, const Exec&);                       \
  template void exact_blocks(const SelfAttention<T>&, std::span<const char>, View<T, 4>, \
                             View<T, 3>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
