#pragma once

#include <span>

#include "cpu/lowrank_states.h"

namespace convbasis {

/// Keys whose weights are computed one by one, at most so many at once.
constexpr index_t kSingleKeys = 64;

/// Numerators and row sums of at most kRowBlock queries: products of their features with states,
/// and weights of single keys.
template <class T>
class LowRankRows {
 public:
  LowRankRows(const Monomials& monomials, std::span<const T> coefficients,
              const LowRankKeys<T>& keys);

  /// The query rows that what follows is about; the sums are 0.
  void select(const View<const T, 2>& query, double scale, std::span<const index_t> rows);

  /// Adds the keys of a state, see ChunkStates::sum.
  void add_state(const T* state, index_t group_size);

  /// Adds single keys [begin, end), end - begin at most kSingleKeys, of which row r sees
  /// start[r] <= j < stop[r].
  void add_keys(index_t begin, index_t end, std::span<const index_t> start,
                std::span<const index_t> stop);

  /// Adds single keys, of which key begin + t is seen by rows from[t] <= r < to[t].
  void add_keys_by_rows(index_t begin, std::span<const index_t> from, std::span<const index_t> to);

  /// sums.row(rows[r]) += what was summed for row r: groups.padded() numbers.
  void add_to(Rows<T> sums) const;

 private:
  void weigh(index_t begin, index_t count, const T* start, const T* stop);
  void add_weighed(index_t begin, index_t count);

  const LowRankKernels<T>& kernels_;
  const Monomials& monomials_;
  std::span<const T> coefficients_;
  const LowRankKeys<T>& keys_;
  std::span<const index_t> rows_;
  bool forms_all_;
  Buffer<T> query_, features_, weights_, sums_;
};

}  // namespace convbasis
