#pragma once

#include "cuda/lowrank_heads.h"
#include "cuda/shares.h"
#include "cuda/term_factors.h"

namespace convbasis::cuda {

/// What gradients through a polynomial are formed of, and go to; rows of all flat heads.
template <class T>
struct LowRankGradient {
  LowRankOperands<T> operands;
  TermFactors<T> of_rows, of_keys;  ///< in units; those of rows divided by the sums of weights
  const HeadUnits* units;
  Array<T> grad_query, grad_key, grad_value;  ///< keys that no query sees have no row here
};

/// Bytes of one head that add_gradients takes, its tokens included.
template <class T>
[[nodiscard]] index_t gradient_bytes(const LowRankGradient<T>& gradient,
                                     const MonomialTable& monomials, index_t heads);

/// Adds the gradients of heads of one degree, without their units:
///
///     dV = W^T L,   dQ = sum over r of diag(L_r) W diag(R_r) K,   dK the same with W^T, and L and
///     R
///
/// in each other's place, for L = (dY, -delta) / row sums and R = (V, 1). Terms r are multiplied
/// into as many channels at a time as a tile has.
template <class T>
void add_gradients(const LowRankGradient<T>& gradient, const LowRankHeads<T>& heads,
                   const MonomialTable& monomials, const Stream& stream);

}  // namespace convbasis::cuda
