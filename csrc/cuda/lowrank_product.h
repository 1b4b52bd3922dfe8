#pragma once

#include "cuda/lowrank_states.h"

namespace convbasis::cuda {

/// W or its transpose, W(i, j) = P(scale * q_i . (k_j - centre)) where row i sees key j, of heads
/// of one degree, for products with many matrices.
///
/// The transpose is the same product with queries and keys in each other's place, and, if causal,
/// both from the last to the first: a row of it sees the queries that come after its key.
template <class T>
class LowRankProduct {
 public:
  /// Of `rows` queries, and `keys` keys that some query sees. `heads` has to outlive it.
  LowRankProduct(const LowRankHeads<T>& heads, const MonomialTable& monomials, index_t rows,
                 index_t keys, bool is_causal, bool transpose, const Stream& stream);

  /// y = W x; x (heads, inputs(), channels) and y (heads, outputs(), channels), C-contiguous. See
  /// lowrank_states.h and lowrank_rows.h for what that takes.
  void multiply(T* x, T* y, index_t channels) const;
  [[nodiscard]] index_t inputs() const { return inputs_; }
  /// As many as there are keys, or more, which are then not to be read.
  [[nodiscard]] index_t outputs() const { return outputs_; }

 private:
  void reverse(const LowRankHeads<T>& heads);
  [[nodiscard]] Array<T> array(T* data, index_t rows, index_t channels) const;

  Stream stream_;
  MonomialTable monomials_;
  index_t inputs_, outputs_;
  bool is_causal_, is_reversed_;
  DeviceBuffer<std::int32_t> numbers_;  // items are their own heads here
  DeviceBuffer<T> tokens_;
  LowRankHeads<T> heads_;
};

}  // namespace convbasis::cuda
