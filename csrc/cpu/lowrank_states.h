#pragma once

#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/features.h"
#include "cpu/lowrank_scales.h"

namespace convbasis {

/// A list of keys of one head, less a centre, and their values with a column of ones. Keys and
/// values are scaled.
template <class T>
struct LowRankKeys {
  LowRankKeys(const View<const T, 2>& key, const View<const T, 2>& value,
              std::span<const index_t> listed, std::span<const double> centre,
              const LowRankScales<T>& scales, const Exec& exec);

  index_t count, head_dim;
  ValueGroups groups;
  Buffer<T> keys;    ///< count x head_dim
  Buffer<T> values;  ///< count x groups.padded(): values, a 1, zeros
  Buffer<T> blocks;  ///< the same as a state of one "feature" a key, group after group

  [[nodiscard]] index_t block_size() const { return round_up(count, kFeatureBlock) * groups.size; }
};

/// Chunk c holds the keys [borders[c], borders[c + 1]) of a list. Sums over all chunks up to one
/// leave out those before the last one that starts anew; none does when that is empty.
struct Chunks {
  std::vector<index_t> borders;
  std::vector<char> starts_anew{};

  /// Chunks of equal length but for the last one.
  [[nodiscard]] static Chunks even(index_t keys, index_t length);
  [[nodiscard]] index_t count() const { return static_cast<index_t>(borders.size()) - 1; }
};

/// Sums of features times values, a state, over chunks of keys.
template <class T>
class ChunkStates {
 public:
  /// Which sums are asked for: of all keys, of the first so many chunks, or of any range of them.
  enum class Kind { total, prefix, range };

  ChunkStates(const Monomials& monomials, std::span<const double> weights,
              const LowRankKeys<T>& keys, const Chunks& chunks, Kind kind, const Exec& exec);

  /// The sum over chunks [first, last), times the weights: group after group, group_size() numbers
  /// each. Valid until `scratch`, of state_size() numbers, is used again.
  [[nodiscard]] const T* sum(index_t first, index_t last, T* scratch) const;

  /// Sums over ranges are those of nodes of a binary tree, whose leaves are the chunks: the parent
  /// of node s is s / 2, and chunk c is the node leaves() + c. Times the weights, as sum().
  [[nodiscard]] index_t leaves() const { return leaves_; }
  [[nodiscard]] const T* node(index_t i) const { return state(i); }

  [[nodiscard]] index_t group_size() const { return group_size_; }
  [[nodiscard]] index_t state_size() const { return state_size_; }

 private:
  void sum_chunk(const Monomials& monomials, const LowRankKeys<T>& keys, index_t first,
                 index_t last, T* state) const;
  void accumulate(const std::vector<char>& starts_anew, const Exec& exec);
  void build_tree(const Exec& exec);
  [[nodiscard]] T* state(index_t i) const { return const_cast<T*>(sums_.data()) + i * state_size_; }

  Kind kind_;
  index_t chunks_, group_size_, state_size_;
  index_t leaves_ = 0;
  std::vector<T> weights_;  ///< of each number of a group
  Buffer<T> sums_;
};

/// Rows of a chunk from which sums over it cost little beside products with the sums, which take
/// about as much memory as queries, keys and values do.
[[nodiscard]] index_t chunk_rows(const Monomials& monomials, const ValueGroups& groups);

}  // namespace convbasis
