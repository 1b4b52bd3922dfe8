#pragma once

#include <algorithm>
#include <map>
#include <span>
#include <vector>

#include "convbasis/lowrank.h"
#include "cuda/gpu_schedule.h"
#include "cuda/lowrank_rows.h"

namespace convbasis::cuda {

/// What a call computes with, as query heads see it.
template <class T>
struct LowRankOperands {
  Array<T> query, key, value;
  double scale;
  bool is_causal;
  /// Those that some query sees.
  [[nodiscard]] index_t keys() const {
    return is_causal ? std::min(query.rows, key.rows) : key.rows;
  }
};

/// Flat heads by the degree of their polynomials.
using HeadsOfDegrees = std::map<index_t, std::vector<index_t>>;

[[nodiscard]] inline index_t degree_of(const HeadPolynomial& polynomial) {
  return static_cast<index_t>(polynomial.coefficients.size()) - 1;
}

/// Throws InvalidArgument for what the CPU takes and a GPU does not.
void require_supported(const char* function, const AttentionOptions& options,
                       std::span<const HeadPolynomial> polynomials, index_t head_dim);

/// f(heads) for as many of `listed` at a time as the workspace has room for.
template <class F>
void for_each_part(std::span<const index_t> listed, index_t bytes_of_head, const F& f) {
  const auto count = static_cast<index_t>(listed.size());
  const index_t at_once = std::clamp(GpuModel().workspace / bytes_of_head, index_t{1}, count);
  for (index_t first = 0; first < count; first += at_once)
    f(listed.subspan(static_cast<std::size_t>(first),
                     static_cast<std::size_t>(std::min(at_once, count - first))));
}

/// attend_rows for all these heads. Rows that are flagged in results.spoiled before do not count
/// for the scales of a head.
template <class T>
void attend_by_polynomials(const HeadsOfDegrees& heads, std::span<const HeadPolynomial> polynomials,
                           const LowRankOperands<T>& operands, const RowResults<T>& results,
                           const Stream& stream);

}  // namespace convbasis::cuda
