#pragma once

#include "cuda/element.h"
#include "cuda/level_plan.h"

namespace convbasis::cuda {

/// Slots of a chunk, `block` rows each from row `offset` of the transform's length on, zeros around
/// them: (length, slots * width). `width` channels from `channel` on.
template <class T>
struct GatherInputs {
  Array<T> x;
  const Slot* slots;
  index_t block, offset, channel;
  std::uint32_t width;
  index_t columns;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t at, index_t column) const {
    const auto slot_index = static_cast<std::uint32_t>(column) / width;
    const auto c = static_cast<std::uint32_t>(column) % width;
    const Slot slot = slots[slot_index];
    const index_t q = at - offset, row = slot.block * block + q;
    const bool taken = q >= 0 && q < block && row >= slot.first && row < slot.last;
    to[at * columns + column] = taken ? x.load(slot.head, row, channel + c) : T(0);
  }
};

}  // namespace convbasis::cuda
