#include "core/scratch.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace convbasis {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20, kHugePage = 2 * kMiB;
constexpr std::size_t kSmallest = kMiB, kMostKept = 128 * kMiB;

/// A kept block carries its size in its first bytes.
struct Kept {
  std::size_t capacity;
};
std::array<std::atomic<Kept*>, 16> slots{};
std::atomic<std::size_t> kept_bytes{0};

bool keep(Kept* block) noexcept {
  const std::size_t before = kept_bytes.fetch_add(block->capacity);
  if (before + block->capacity <= kMostKept) {
    for (auto& slot : slots) {
      Kept* empty = nullptr;
      if (slot.load(std::memory_order_relaxed) == nullptr &&
          slot.compare_exchange_strong(empty, block))
        return true;
    }
  }
  kept_bytes.fetch_sub(block->capacity);
  return false;
}

/// A kept block of at least `bytes` and at most twice that, or null.
Kept* find_kept(std::size_t bytes) {
  for (auto& slot : slots) {
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    Kept* block = slot.exchange(nullptr);
    if (block == nullptr) continue;
    kept_bytes.fetch_sub(block->capacity);
    if (block->capacity >= bytes && block->capacity <= 2 * bytes) return block;
    if (!keep(block)) std::free(block);
  }
  return nullptr;
}

}  // namespace

ScratchBlock take_scratch(std::size_t bytes) {
  if (bytes >= kSmallest) {
    if (Kept* block = find_kept(bytes)) return {block, block->capacity};
  }
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const std::size_t capacity = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, capacity);
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) (void)madvise(data, capacity, MADV_HUGEPAGE);
#endif
  return {data, capacity};
}

void give_scratch(ScratchBlock block) noexcept {
  if (block.data == nullptr) return;
  if (block.capacity >= kSmallest && block.capacity <= kMostKept / 2) {
    auto* kept = new (block.data) Kept{block.capacity};
    if (keep(kept)) return;
  }
  std::free(block.data);
}

}  // namespace convbasis
