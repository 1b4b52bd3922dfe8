#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/schedule.h"

namespace convbasis::cuda {

// What a level does, as tables that kernels look up. Built on the host, where starts are.

/// Lags [first, first + 2 * block) of one strip's kernel, of which `limit` exist.
struct Window {
  std::int32_t head, strip, first, limit;
};

/// A piece or a block of rows, in its place in a block of the level: rows [first, last) of block
/// `block` take part. For a piece, weights of (piece, block b) are window `base` + b.
struct Slot {
  std::int32_t head, block, first, last, base;
};

/// Outputs that one thread block sums, and the inputs that may act on them, in their chunk; of a
/// cell, a span of one head, all of both.
struct Tile {
  std::int32_t output, outputs, input, inputs;
};

/// Work that is in memory at the same time.
struct Chunk {
  index_t input, inputs, output, outputs, tile, tiles, cell, cells;
};

/// One level for heads [head, head + heads), whose windows are in memory at the same time.
struct LevelPlan {
  Level level;
  index_t width;  ///< channels that are in memory at the same time
  std::vector<Window> windows;
  std::vector<Slot> inputs, outputs;  ///< transposed: inputs are blocks and outputs are pieces
  std::vector<Tile> tiles, cells;
  std::vector<Chunk> chunks;
};

constexpr index_t kTileOutputs = 8;

/// The plans of one level, one after another; chunks of about `workspace` bytes, each at least a
/// span of one head and 32 channels.
[[nodiscard]] std::vector<LevelPlan> plan_level(std::span<const StripLayout> heads,
                                                const Level& level, bool transpose,
                                                index_t channels, index_t element_size,
                                                index_t workspace);

}  // namespace convbasis::cuda
