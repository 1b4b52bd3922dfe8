#pragma once

#include "cuda/lowrank_tokens.h"
#include "cuda/monomials.h"

namespace convbasis::cuda {

/// Sums of weight * monomial(key) * (value, 1) over the keys of chunks: of each head chunks + 1
/// states of (padded features, channels + 1), the sums of all chunks before a state's number, so
/// that the last one is the sum over all keys.
template <class T>
struct ChunkStates {
  DeviceBuffer<T> memory;
  MonomialTable monomials;
  index_t chunk = 0;   ///< keys of one, a multiple of LowRankTokens::kTokenMultiple
  index_t chunks = 0;  ///< of a head
  index_t keys = 0;    ///< of a head, those that some query sees
  index_t stride = 1;  ///< channels + 1

  [[nodiscard]] index_t size() const { return monomials.padded * stride; }
  [[nodiscard]] index_t of_head() const { return (chunks + 1) * size(); }
};

/// The states of `heads` heads that are summed at a time, without their memory: `chunk` balances
/// what states take of device memory with the keys of a row's own chunk.
template <class T>
[[nodiscard]] ChunkStates<T> plan_states(const MonomialTable& monomials, index_t head_dim,
                                         index_t channels, index_t keys, index_t heads,
                                         bool is_causal);

/// Fills `states`, all but whose memory is given. Features are formed in shared memory, from where
/// they are summed by products of tiles; none is ever in device memory. Sums have a fixed order.
///
/// For n keys, rank r, degree g and c channels a head: 2 n r (c + 1) FLOP of products, g n r
/// ceil(c / 64) for features, and chunks * r * (c + 1) numbers written, read and written again.
template <class T>
void sum_chunks(const LowRankHeads<T>& heads, const Array<T>& value, ChunkStates<T>& states,
                const Stream& stream);

}  // namespace convbasis::cuda
