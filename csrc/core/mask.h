#pragma once

#include "convbasis/mask.h"

namespace convbasis {

/// Throws InvalidArgument, in the name of `function`, unless the mask fits n_q queries and n_kv
/// keys. That keys of a RowChange come and go by turns is found by whoever walks them. O(its size).
void require_mask(const char* function, const Mask& mask, index_t n_q, index_t n_kv);

}  // namespace convbasis
