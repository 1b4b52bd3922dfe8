#pragma once

#include "core/groups.h"
#include "cuda/buffer.h"
#include "cuda/heads_backward.h"

namespace convbasis::cuda {

/// Query heads, those that share a key head next to each other, and where the heads of each group
/// begin, with the end of the last one.
struct HeadGroups {
  DeviceBuffer<std::int32_t> heads, begins;
  [[nodiscard]] index_t count() const { return begins.size() - 1; }
};
[[nodiscard]] HeadGroups upload_groups(std::span<const Group> groups, index_t query_heads,
                                       const Stream& stream);

/// exact_attention_backward of `groups`, whose gradients are written. `only` (all heads), which may
/// be null, flags the heads to compute; no two heads may share a gradient then.
template <class T>
void differentiate_exactly(const BackwardArrays<T>& arrays, const HeadGroups& groups,
                           index_t all_heads, double scale, bool is_causal,
                           const std::int32_t* only, const Stream& stream);

}  // namespace convbasis::cuda
