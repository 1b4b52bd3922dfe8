#include "cpu/rank_keys.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace convbasis {
namespace {

constexpr index_t kBlockTile = 16;  ///< query blocks of a matrix product

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

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
RankedBlocks<T> rank_key_blocks(const HeadArrays<T>& head, std::span<const index_t> heavy,
                                index_t near_blocks, index_t most, const Exec& exec) {
  const index_t blocks = ceil_div(head.n, kKeyBlock);
  RankedBlocks<T> ranked{std::vector<index_t>(at(blocks * most), -1),
                         std::vector<T>(at(blocks * most), T(0))};
  if (most == 0) return ranked;
  parallel_for(exec, ceil_div(blocks, kBlockTile), [&](index_t tile, int) {
    const index_t top = blocks - tile * kBlockTile, bottom = std::max<index_t>(top - kBlockTile, 0);
    if (top - 1 <= near_blocks) return;
    const index_t keys = std::min(top * kKeyBlock, head.n);
    Buffer<T> means((top - bottom) * head.head_dim), scores((top - bottom) * keys);
    for (index_t b = bottom; b < top; ++b)
      mean_query(head, b, means.data() + (b - bottom) * head.head_dim);
    head.keys.multiply({means.data(), head.head_dim}, top - bottom, 0, keys, scores.data(), keys);
    std::vector<T> masses(at(top));
    std::vector<index_t> order(at(top));
    for (index_t b = bottom; b < top; ++b) {
      const index_t far = std::max<index_t>(b - near_blocks, 0);
      if (far == 0) continue;
      T* row = scores.data() + (b - bottom) * keys;
      const index_t seen = std::min((b + 1) * kKeyBlock, head.n);
      const T peak = kernels<T>().max_value(row, seen);
      if (!std::isfinite(peak)) continue;
      double all = kernels<T>().exp_sum(row + far * kKeyBlock, peak, seen - far * kKeyBlock);
      for (const index_t key : heavy) {
        if (key >= far * kKeyBlock) break;
        all += std::exp(static_cast<double>(row[key] - peak));
        row[key] = -std::numeric_limits<T>::infinity();
      }
      for (index_t j = 0; j < far; ++j) {
        const double mass = kernels<T>().exp_sum(row + j * kKeyBlock, peak, kKeyBlock);
        masses[at(j)] = static_cast<T>(mass);
        all += mass;
      }
      std::iota(order.begin(), order.begin() + far, index_t{0});
      const index_t kept = std::min(most, far);
      std::partial_sort(order.begin(), order.begin() + kept, order.begin() + far,
                        [&](index_t x, index_t y) {
                          const T mx = masses[at(x)], my = masses[at(y)];
                          return mx != my ? mx > my : x > y;
                        });
      for (index_t r = 0; r < kept; ++r) {
        const index_t block = order[at(r)];
        ranked.blocks[at(b * most + r)] = block;
        ranked.shares[at(b * most + r)] =
            static_cast<T>(static_cast<double>(masses[at(block)]) / all);
      }
    }
  });
  return ranked;
}

template <class T>
std::vector<index_t> take_largest(const RankedBlocks<T>& ranked, index_t rows, index_t near_blocks,
                                  index_t mean) {
  const index_t blocks = ceil_div(rows, kKeyBlock);
  const index_t most = static_cast<index_t>(ranked.blocks.size()) / blocks;
  std::vector<index_t> taken(at(blocks), 0);
  const auto for_each_far = [&](const auto& part) {
    for (index_t b = kWholeBlocks; b < blocks; ++b)
      for (index_t i = b * most; i < (b + 1) * most && ranked.shares[at(i)] > T(0); ++i)
        if (ranked.blocks[at(i)] < b - near_blocks) part(b, ranked.shares[at(i)]);
  };
  std::vector<T> shares;
  for_each_far([&](index_t, T share) { shares.push_back(share); });
  const std::size_t wanted = at(mean * std::max<index_t>(blocks - kWholeBlocks, 0));
  if (wanted == 0) return taken;
  T least = 0;
  if (wanted < shares.size()) {
    std::nth_element(shares.begin(), shares.begin() + static_cast<index_t>(wanted) - 1,
                     shares.end(), std::greater<>());
    least = shares[wanted - 1];
  }
  for_each_far([&](index_t b, T share) { taken[at(b)] += share >= least ? 1 : 0; });
  return taken;
}

#define CONVBASIS_INSTANTIATE(T)                                                           \
  template RankedBlocks<T> rank_key_blocks(const HeadArrays<T>&, std::span<const index_t>, \
                                           index_t, index_t, const Exec&);                 \
  template std::vector<index_t> take_largest(const RankedBlocks<T>&, index_t, index_t, index_t);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
