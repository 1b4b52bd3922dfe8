#include "cpu/lowrank_states.h"

#include <algorithm>
#include <bit>

namespace convbasis {

template <class T>
LowRankKeys<T>::LowRankKeys(const View<const T, 2>& key, const View<const T, 2>& value,
                            std::span<const index_t> listed, std::span<const double> centre,
                            const LowRankScales<T>& scales, const Exec& exec)
    : count(static_cast<index_t>(listed.size())),
      head_dim(key.shape[1]),
      groups(value.shape[1] + 1),
      keys(count * head_dim),
      values(count * groups.padded()),
      blocks(block_size() * groups.count) {
  const index_t channels = value.shape[1], width = groups.padded();
  parallel_for(exec, ceil_div(count, kFeatureBlock), [&](index_t block, int) {
    const index_t first = block * kFeatureBlock, last = std::min(first + kFeatureBlock, count);
    for (index_t g = 0; g < groups.count; ++g)
      std::fill_n(blocks.data() + g * block_size() + first * groups.size,
                  kFeatureBlock * groups.size, T(0));
    for (index_t j = first; j < last; ++j) {
      const index_t from = listed[static_cast<std::size_t>(j)];
      for (index_t c = 0; c < head_dim; ++c)
        keys[j * head_dim + c] = static_cast<T>(
            scales.key * (static_cast<double>(key(from, c)) - centre[static_cast<std::size_t>(c)]));
      T* row = values.data() + j * width;
      for (index_t c = 0; c < channels; ++c) row[c] = scales.value * value(from, c);
      row[channels] = T(1);
      std::fill(row + channels + 1, row + width, T(0));
      for (index_t g = 0; g < groups.count; ++g) {
        T* to = blocks.data() + g * block_size() + first * groups.size + j - first;
        for (index_t m = 0; m < groups.size; ++m) to[m * kFeatureBlock] = row[g * groups.size + m];
      }
    }
  });
}

template <class T>
ChunkStates<T>::ChunkStates(const Monomials& monomials, std::span<const double> weights,
                            const LowRankKeys<T>& keys, const Chunks& chunks, Kind kind,
                            const Exec& exec)
    : kind_(kind),
      chunks_(chunks.count()),
      group_size_(monomials.padded() * keys.groups.size),
      state_size_(group_size_ * keys.groups.count),
      weights_(static_cast<std::size_t>(group_size_)) {
  for (index_t i = 0; i < group_size_; ++i) {
    const index_t block = i / (kFeatureBlock * keys.groups.size);
    weights_[static_cast<std::size_t>(i)] = static_cast<T>(
        weights[static_cast<std::size_t>(block * kFeatureBlock + i % kFeatureBlock)]);
  }
  if (kind == Kind::range)
    leaves_ = static_cast<index_t>(std::bit_ceil(static_cast<std::size_t>(chunks_)));
  sums_ = Buffer<T>((leaves_ + chunks_) * state_size_);
  parallel_for(exec, chunks_, [&](index_t c, int) {
    const auto border = chunks.borders.begin() + c;
    sum_chunk(monomials, keys, border[0], border[1], state(leaves_ + c));
  });
  if (kind == Kind::range) {
    build_tree(exec);
  } else {
    accumulate(chunks.starts_anew, exec);
  }
}

/// Runs of kRun keys are summed by themselves, so that rounding grows with the number of runs.
template <class T>
void ChunkStates<T>::sum_chunk(const Monomials& monomials, const LowRankKeys<T>& keys,
                               index_t first, index_t last, T* state) const {
  constexpr index_t kRun = 128, kTileBytes = 256 * 1024;
  const LowRankKernels<T>& kernels = convbasis::kernels<T>().low_rank;
  const index_t padded = monomials.padded(), size = keys.groups.size;
  const index_t lines = static_cast<index_t>(64 / sizeof(T));
  // An odd number of cache lines: rows then do not compete for the same places in the cache.
  const index_t stride = (padded / lines | 1) * lines;
  const index_t tile =
      std::clamp<index_t>(kTileBytes / (stride * static_cast<index_t>(sizeof(T))), 4, 32);
  const auto runs = monomials.runs();
  Buffer<T> numbers(kFeatureBlock + tile * stride), more(last - first > kRun ? state_size_ : 0);
  std::fill_n(numbers.data(), kFeatureBlock + stride, T(0));
  T* const features = numbers.data() + kFeatureBlock;
  std::fill_n(state, state_size_, T(0));
  for (index_t run = first; run < last; run += kRun) {
    T* sum = run == first ? state : more.data();
    if (run != first) std::fill_n(sum, state_size_, T(0));
    const index_t run_end = std::min(run + kRun, last);
    for (index_t at = run; at < run_end; at += tile) {
      const index_t rows = std::min(tile, run_end - at);
      kernels.monomials_along(keys.keys.data() + at * keys.head_dim, keys.head_dim, rows,
                              runs.data(), static_cast<index_t>(runs.size()), features, stride);
      for (index_t i = 0; i < rows; ++i) {
        T* row = features + i * stride;
        std::fill(row + monomials.count(), row + padded, T(0));
      }
      for (index_t g = 0; g < keys.groups.count; ++g)
        kernels.add_outer_products(features, stride,
                                   keys.values.data() + at * keys.groups.padded() + g * size,
                                   keys.groups.padded(), rows, padded, sum + g * group_size_, size);
    }
    if (run == first) continue;
    for (index_t i = 0; i < state_size_; ++i) state[i] += sum[i];
  }
}

/// The sums of the chunks become sums of all chunks up to them; weighted, and summed in double.
template <class T>
void ChunkStates<T>::accumulate(const std::vector<char>& starts_anew, const Exec& exec) {
  constexpr index_t kSlice = kFeatureBlock * 32;
  parallel_for(exec, ceil_div(state_size_, kSlice), [&](index_t slice, int) {
    const index_t first = slice * kSlice, count = std::min(kSlice, state_size_ - first);
    double sums[kSlice] = {};
    T weights[kSlice];
    for (index_t i = 0; i < count; ++i)
      weights[i] = weights_[static_cast<std::size_t>((first + i) % group_size_)];
    for (index_t c = 0; c < chunks_; ++c) {
      T* numbers = state(c) + first;
      if (!starts_anew.empty() && starts_anew[static_cast<std::size_t>(c)] != 0)
        std::fill_n(sums, kSlice, 0.0);
      for (index_t i = 0; i < count; ++i) {
        sums[i] += static_cast<double>(numbers[i]);
        numbers[i] = static_cast<T>(sums[i]) * weights[i];
      }
    }
  });
}

/// Weighs the leaves; node s becomes the sum of nodes 2 s and 2 s + 1.
template <class T>
void ChunkStates<T>::build_tree(const Exec& exec) {
  constexpr index_t kSlice = 4096;
  parallel_for(exec, ceil_div(state_size_, kSlice), [&](index_t slice, int) {
    const index_t first = slice * kSlice, count = std::min(kSlice, state_size_ - first);
    for (index_t c = 0; c < chunks_; ++c)
      for (index_t i = first; i < first + count; ++i)
        state(leaves_ + c)[i] *= weights_[static_cast<std::size_t>(i % group_size_)];
    for (index_t node = leaves_ - 1; node > 0; --node) {
      index_t last_leaf = node;
      while (last_leaf < leaves_) last_leaf = 2 * last_leaf + 1;
      if (last_leaf >= leaves_ + chunks_) continue;  // no range of chunks has this node
      const T* left = state(2 * node) + first;
      const T* right = state(2 * node + 1) + first;
      T* to = state(node) + first;
      for (index_t i = 0; i < count; ++i) to[i] = left[i] + right[i];
    }
  });
}

template <class T>
const T* ChunkStates<T>::sum(index_t first, index_t last, T* scratch) const {
  if (kind_ != Kind::range) return state(last - 1);
  std::fill_n(scratch, state_size_, T(0));
  const auto add = [&](const T* node) {
    for (index_t i = 0; i < state_size_; ++i) scratch[i] += node[i];
  };
  for (index_t left = leaves_ + first, right = leaves_ + last; left < right;
       left /= 2, right /= 2) {
    if (left % 2 == 1) add(state(left++));
    if (right % 2 == 1) add(state(--right));
  }
  return scratch;
}

Chunks Chunks::even(index_t keys, index_t length) {
  Chunks chunks{{0}};
  while (chunks.borders.back() < keys)
    chunks.borders.push_back(std::min(chunks.borders.back() + length, keys));
  return chunks;
}

index_t chunk_rows(const Monomials& monomials, const ValueGroups& groups) {
  const index_t single = monomials.variables() + monomials.degree() + groups.padded();
  const index_t wanted = monomials.padded() * groups.padded() / (2 * single);
  // The nearest power of two.
  return std::clamp<index_t>(
      static_cast<index_t>(std::bit_floor(static_cast<std::size_t>(wanted + wanted / 2) + 1)), 64,
      1024);
}

template struct LowRankKeys<float>;
template struct LowRankKeys<double>;
template class ChunkStates<float>;
template class ChunkStates<double>;

}  // namespace convbasis
