#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "cpu/backward_tiles.h"
#include "cpu/head_forward.h"

namespace convbasis {

/// The rows that a head's fast path could not give, in the backward pass: dS of each of them from
/// the logits of the strips, O(n d) a row. f^T dY of these rows is added to grad_value.
/// consume(rows, grads) takes dS of some rows, all keys of a row in one row of grads.
template <class T, class Consume>
void backward_of_spoiled_rows(const HeadForward<T>& head, std::span<const double> delta,
                              Rows<const T> grad_output, Rows<T> grad_value, const Exec& exec,
                              const Consume& consume) {
  constexpr index_t kMostEntries = index_t{1} << 22;  // of dS at a time
  const std::span<const index_t> all = head.spoiled();
  if (all.empty()) return;
  const StripMatrix<T>& lower = head.halves()[0].logits;
  const StripMatrix<T>* upper = head.halves().size() > 1 ? &head.halves()[1].logits : nullptr;
  const index_t keys = lower.layout.columns, channels = head.channels();
  const index_t together = std::clamp<index_t>(kMostEntries / keys, 1, kQueryTile);
  const Panels<T> panels(head.values().rows, keys, channels, exec);
  const VisibleKeys visible(upper == nullptr, keys);
  std::vector<std::optional<BackwardTiles<T>>> tiles(
      static_cast<std::size_t>(resolve_threads(exec)));
  Buffer<T> grads(together * channels), deltas(together), found(together * keys);
  std::vector<double> lse = head.spoiled_lse();
  for (index_t first = 0; first < static_cast<index_t>(all.size()); first += together) {
    const index_t count = std::min(together, static_cast<index_t>(all.size()) - first);
    const auto rows = all.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    for (index_t r = 0; r < count; ++r) {
      const index_t row = rows[static_cast<std::size_t>(r)];
      std::copy_n(grad_output.row(row), channels, grads.data() + r * channels);
      deltas[r] = static_cast<T>(delta[static_cast<std::size_t>(row)]);
    }
    parallel_for(exec, ceil_div(keys, kPanel), [&](index_t panel, int worker) {
      auto& mine = tiles[static_cast<std::size_t>(worker)];
      if (!mine)
        mine.emplace(head.values().rows, panels, channels, visible, "conv_attention_backward");
      StripScores<T> source(lower, upper);
      const index_t key = panel * kPanel, last = std::min(key + kPanel, keys);
      const BackwardRows<T> of{rows, {grads.data(), channels}, lse.data() + first, deltas.data()};
      mine->look(of, {key, last});
      const Rows<const T> tile = mine->backward(source, key, last, of, grad_value);
      for (index_t r = 0; r < count; ++r)
        std::copy_n(tile.row(r), last - key, found.data() + r * keys + key);
    });
    consume(rows, Rows<const T>{found.data(), keys});
  }
}

}  // namespace convbasis
