#pragma once

#include <span>
#include <vector>

#include "convbasis/lowrank.h"
#include "cuda/buffer.h"
#include "cuda/element.h"

namespace convbasis::cuda {

/// Powers of two that keep monomials and their sums from overflowing, see the CPU's
/// lowrank_scales.h; `query` has the scale of the logits in it.
template <class T>
struct HeadScales {
  double query, key;
  T value, unscale;  ///< of values before their sum, and of what comes out
};

/// Heads of polynomials of one degree as kernels see them: item i is flat head listed[i].
template <class T>
struct LowRankHeads {
  const std::int32_t* listed = nullptr;
  const double* coefficients = nullptr;  ///< (count, degree + 1)
  const double* centres = nullptr;       ///< (count, head_dim)
  const HeadScales<T>* scales = nullptr;
  /// Scaled queries, and scaled keys without their centre: (count, head_dim + 1, tokens), by
  /// variable, the last of which is 1. Tokens that only pad are 0 in all of them.
  const T *queries = nullptr, *keys = nullptr;
  index_t count = 0, degree = 0, head_dim = 0;
  index_t query_tokens = 0, key_tokens = 0;  ///< multiples of kTokenMultiple

  /// What an entry of a query, or of variable `variable` of a key, is as a token.
  [[nodiscard]] CONVBASIS_DEVICE T of_query(index_t item, double entry) const {
    return static_cast<T>(scales[item].query * entry);
  }
  [[nodiscard]] CONVBASIS_DEVICE T of_key(index_t item, index_t variable, double entry) const {
    return static_cast<T>(scales[item].key * (entry - centres[item * head_dim + variable]));
  }
};

/// The same with their memory.
template <class T>
class LowRankTokens {
 public:
  static constexpr index_t kTokenMultiple = 256;

  /// `skipped` (all heads, rows) flags queries that do not count for the scales; keys from `seen`
  /// on are left out.
  LowRankTokens(std::span<const index_t> listed, std::span<const HeadPolynomial> polynomials,
                const Array<T>& query, const Array<T>& key, const Array<T>& value, index_t seen,
                double scale, const std::int32_t* skipped, const Stream& stream);

  [[nodiscard]] const LowRankHeads<T>& heads() const { return heads_; }
  /// Bytes of one head.
  [[nodiscard]] static index_t bytes(index_t queries, index_t keys, index_t head_dim);

 private:
  DeviceBuffer<std::int32_t> listed_;
  DeviceBuffer<double> numbers_;
  DeviceBuffer<HeadScales<T>> scales_;
  DeviceBuffer<T> tokens_;
  LowRankHeads<T> heads_;
};

}  // namespace convbasis::cuda
