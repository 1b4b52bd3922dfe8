#pragma once

#include <cstddef>

namespace convbasis {

/// A block of at least `bytes`, aligned for the widest vectors; `capacity` says how large it is.
struct ScratchBlock {
  void* data = nullptr;
  std::size_t capacity = 0;
};

/// Large blocks are recycled: fresh pages must be zeroed by the system, which takes longer than
/// filling them, and calls of one size follow each other. At most 16 blocks and 128 MiB are kept,
/// without a lock, so that any thread and a forked child can use them.
/// Throws std::bad_alloc.
[[nodiscard]] ScratchBlock take_scratch(std::size_t bytes);
void give_scratch(ScratchBlock block) noexcept;

}  // namespace convbasis
