#include "core/head_polynomial.h"
#include "cuda/lowrank_heads.h"

namespace convbasis::cuda {
namespace {

constexpr index_t kMostFeatures = index_t{1} << 26;

}  // namespace

void require_supported(const char* function, const AttentionOptions& options,
                       std::span<const HeadPolynomial> polynomials, index_t head_dim) {
  require(std::holds_alternative<std::monostate>(options.mask), function,
          "mask is given; expected none: on a GPU, is_causal alone hides keys");
  for (const HeadPolynomial& polynomial : polynomials) {
    require(polynomial.exact_columns.empty(), function,
            "polynomials hold exact columns; expected none on a GPU; got " +
                std::to_string(polynomial.exact_columns.size()));
    const index_t degree = degree_of(polynomial);
    require(degree <= kMostDegree, function,
            "polynomials hold one of degree " + std::to_string(degree) + "; expected at most " +
                std::to_string(kMostDegree));
    const index_t rank = rank_of(polynomial, head_dim);
    require(rank <= kMostFeatures, function,
            "polynomials hold one with " + std::to_string(rank) + " features; expected at most " +
                std::to_string(kMostFeatures));
  }
}

template <class T>
void attend_by_polynomials(const HeadsOfDegrees& heads, std::span<const HeadPolynomial> polynomials,
                           const LowRankOperands<T>& operands, const RowResults<T>& results,
                           const Stream& stream) {
  const index_t head_dim = operands.query.channels, keys = operands.keys();
  for (const auto& [degree, listed] : heads) {
    const Monomials monomials(head_dim, degree, stream);
    ChunkStates<T> states =
        plan_states<T>(monomials.table(), head_dim, operands.value.channels, keys,
                       static_cast<index_t>(listed.size()), operands.is_causal);
    const index_t bytes = states.of_head() * static_cast<index_t>(sizeof(T)) +
                          LowRankTokens<T>::bytes(operands.query.rows, keys, head_dim);
    for_each_part(listed, bytes, [&](std::span<const index_t> part) {
      const LowRankTokens<T> tokens(part, polynomials, operands.query, operands.key, operands.value,
                                    keys, operands.scale, results.spoiled, stream);
      sum_chunks(tokens.heads(), operands.value, states, stream);
      attend_rows(tokens.heads(), states, operands.query, operands.value, operands.is_causal,
                  operands.scale, results, stream);
    });
  }
}

#define CONVBASIS_INSTANTIATE(T)                                                              \
  template void attend_by_polynomials(const HeadsOfDegrees&, std::span<const HeadPolynomial>, \
                                      const LowRankOperands<T>&, const RowResults<T>&,        \
                                      const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
