#pragma once

#include "cuda/shares.h"

namespace convbasis::cuda {

/// With u_r[t] = q[s_r + t] . k[s_r]: grad_query[i] = the sum over r of du_r[i - s_r] k[s_r], and
/// adds the sums over t of du_r[t] q[s_r + t] to grad_key[s_r], those of the heads that share it in
/// their order. 4 k n d FLOP a head; queries, du and gradients are read or written once.
template <class T>
void add_kernel_gradients(const Strips<T>& logits, const T* kernel_grads, const HeadUnits* units,
                          double scale, const Array<T>& query, const Array<T>& key,
                          const Array<T>& grad_query, const Array<T>& grad_key,
                          const Stream& stream);

}  // namespace convbasis::cuda
