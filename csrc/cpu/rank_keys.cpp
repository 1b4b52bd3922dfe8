#include "cpu/rank_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace convbasis {
namespace {

constexpr index_t kBlockTile = 16;  ///< query blocks of a matrix product

/// Mean of the scaled queries of a block.
template <class T>
void mean_query(const HeadArrays<T>& head, index_t block, T* mean) {
  const index_t first = block * kKeyBlock, count = std::min(kKeyBlock, head.n - first);
  const index_t channels = head.head_dim;
  Buffer<T> query(count * channels);
  std::vector<index_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), first);
  head.pack_query(rows, query.data());
  // Before they are added: sums overflow where queries do not.
  kernels<T>().scale(query.data(), T(1) / static_cast<T>(count), count * channels);
  std::copy_n(query.data(), channels, mean);
  for (index_t i = 1; i < count; ++i)
    for (index_t c = 0; c < channels; ++c) mean[c] += query[i * channels + c];
}

}  // namespace

template <class T>
std::vector<index_t> rank_key_blocks(const HeadArrays<T>& head, std::span<const index_t> heavy,
                                     index_t near_blocks, index_t most, const Exec& exec) {
  const index_t blocks = ceil_div(head.n, kKeyBlock);
  std::vector<index_t> ranked(static_cast<std::size_t>(blocks * most), -1);
  if (most == 0) return ranked;
  parallel_for(exec, ceil_div(blocks, kBlockTile), [&](index_t tile, int) {
    const index_t top = blocks - tile * kBlockTile, bottom = std::max<index_t>(top - kBlockTile, 0);
    const index_t far = std::max<index_t>(top - 1 - near_blocks, 0), keys = far * kKeyBlock;
    if (far == 0) return;
    Buffer<T> means((top - bottom) * head.head_dim), scores((top - bottom) * keys);
    for (index_t b = bottom; b < top; ++b)
      mean_query(head, b, means.data() + (b - bottom) * head.head_dim);
    head.keys.multiply({means.data(), head.head_dim}, top - bottom, 0, keys, scores.data(), keys);
    std::vector<double> masses(static_cast<std::size_t>(far));
    std::vector<index_t> order(static_cast<std::size_t>(far));
    for (index_t b = bottom; b < top; ++b) {
      const index_t seen = std::max<index_t>(b - near_blocks, 0);
      if (seen == 0) continue;
      T* row = scores.data() + (b - bottom) * keys;
      for (const index_t key : heavy)
        if (key < seen * kKeyBlock) row[key] = -std::numeric_limits<T>::infinity();
      const T peak = kernels<T>().max_value(row, seen * kKeyBlock);
      if (!std::isfinite(peak)) continue;
      for (index_t j = 0; j < seen; ++j)
        masses[static_cast<std::size_t>(j)] =
            kernels<T>().exp_sum(row + j * kKeyBlock, peak, kKeyBlock);
      std::iota(order.begin(), order.begin() + seen, index_t{0});
      const index_t kept = std::min(most, seen);
      std::partial_sort(order.begin(), order.begin() + kept, order.begin() + seen,
                        [&](index_t x, index_t y) {
                          const double mx = masses[static_cast<std::size_t>(x)];
                          const double my = masses[static_cast<std::size_t>(y)];
                          return mx != my ? mx > my : x > y;
                        });
      std::copy_n(order.begin(), kept, ranked.begin() + b * most);
    }
  });
  return ranked;
}

template std::vector<index_t> rank_key_blocks(const HeadArrays<float>&, std::span<const index_t>,
                                              index_t, index_t, const Exec&);
template std::vector<index_t> rank_key_blocks(const HeadArrays<double>&, std::span<const index_t>,
                                              index_t, index_t, const Exec&);

}  // namespace convbasis
