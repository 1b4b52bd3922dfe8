#include "cuda/level_plan.h"

#include <algorithm>

#include "core/buffer.h"

namespace convbasis::cuda {
namespace {

constexpr index_t kFewChannels = 32;

std::int32_t narrow(index_t value) { return static_cast<std::int32_t>(value); }

/// What acts on what inside one span of one head.
struct Cell {
  std::vector<Slot> pieces, blocks;
  [[nodiscard]] index_t size() const { return static_cast<index_t>(pieces.size() + blocks.size()); }
};

class Planner {
 public:
  Planner(const Level& level, bool transpose) : level_(level), transpose_(transpose) {}

  /// Windows of a head, from which its pieces find their own.
  void add_windows(const StripLayout& layout, index_t head, LevelPlan& plan) {
    bases_.clear();
    for (index_t r = 0; r < layout.count(); ++r) {
      bases_.push_back(static_cast<index_t>(plan.windows.size()));
      const index_t lags = layout.rows - layout.begin(r);
      for (index_t lag = 1; lag <= max_block_lag(layout, r, level_); ++lag) {
        const index_t first = (lag - 1) * level_.block;
        plan.windows.push_back({narrow(head), narrow(r), narrow(first), narrow(lags - first)});
      }
    }
  }

  /// Spans of a head in which something acts on a later block.
  [[nodiscard]] std::vector<Cell> cells_of(const StripLayout& layout, index_t head) const {
    const Pieces pieces = cut_into_pieces(layout, level_.block);
    const index_t blocks = ceil_div(layout.rows, level_.block);
    const index_t per_span = level_.span / level_.block;
    std::vector<Cell> cells;
    for (index_t begin = 0; begin + 1 < blocks; begin += per_span) {
      const index_t end = std::min(begin + per_span, blocks);
      Cell cell;
      for (index_t p = pieces.first[static_cast<std::size_t>(begin)];
           p < pieces.first[static_cast<std::size_t>(end - 1)]; ++p) {
        const Piece& piece = pieces.list[static_cast<std::size_t>(p)];
        const index_t base = bases_[static_cast<std::size_t>(piece.strip)] - piece.block - 1;
        cell.pieces.push_back({narrow(head), narrow(piece.block), narrow(piece.begin),
                               narrow(piece.end), narrow(base)});
      }
      if (cell.pieces.empty()) continue;
      // Blocks before the first piece receive, and when transposed give, nothing.
      for (index_t b = cell.pieces.front().block + 1; b < end; ++b)
        cell.blocks.push_back({narrow(head), narrow(b), narrow(b * level_.block),
                               narrow(std::min((b + 1) * level_.block, layout.rows)), 0});
      if (!cell.blocks.empty()) cells.push_back(std::move(cell));
    }
    return cells;
  }

  void add_cell(const Cell& cell, bool new_chunk, LevelPlan& plan) const {
    const std::vector<Slot>& inputs = transpose_ ? cell.blocks : cell.pieces;
    const std::vector<Slot>& outputs = transpose_ ? cell.pieces : cell.blocks;
    if (new_chunk)
      plan.chunks.push_back({static_cast<index_t>(plan.inputs.size()), 0,
                             static_cast<index_t>(plan.outputs.size()), 0,
                             static_cast<index_t>(plan.tiles.size()), 0,
                             static_cast<index_t>(plan.cells.size()), 0});
    Chunk& chunk = plan.chunks.back();
    const auto count = static_cast<index_t>(outputs.size());
    for (index_t first = 0; first < count; first += kTileOutputs) {
      const index_t last = std::min(first + kTileOutputs, count);
      // Both lists are in the order of their blocks, so what acts on a tile is one run.
      const auto acts = [&](const Slot& slot) {
        return transpose_ ? slot.block > outputs[static_cast<std::size_t>(first)].block
                          : slot.block < outputs[static_cast<std::size_t>(last - 1)].block;
      };
      const auto begin = std::find_if(inputs.begin(), inputs.end(), acts);
      const index_t acting = std::count_if(inputs.begin(), inputs.end(), acts);
      plan.tiles.push_back({narrow(chunk.outputs + first), narrow(last - first),
                            narrow(chunk.inputs + (begin - inputs.begin())), narrow(acting)});
      ++chunk.tiles;
    }
    plan.cells.push_back({narrow(chunk.outputs), narrow(count), narrow(chunk.inputs),
                          narrow(static_cast<index_t>(inputs.size()))});
    ++chunk.cells;
    chunk.inputs += static_cast<index_t>(inputs.size());
    chunk.outputs += count;
    plan.inputs.insert(plan.inputs.end(), inputs.begin(), inputs.end());
    plan.outputs.insert(plan.outputs.end(), outputs.begin(), outputs.end());
  }

 private:
  Level level_;
  bool transpose_;
  std::vector<index_t> bases_;
};

}  // namespace

std::vector<LevelPlan> plan_level(std::span<const StripLayout> heads, const Level& level,
                                  bool transpose, index_t channels, index_t element_size,
                                  index_t workspace) {
  Planner planner(level, transpose);
  std::vector<LevelPlan> plans;
  // A slot has 2 * block numbers a channel before its transform, and about as many after it.
  const index_t slot_bytes = 4 * level.block * element_size;
  index_t held = 0;  // slots of the last chunk
  for (std::size_t head = 0; head < heads.size(); ++head) {
    const bool full = !plans.empty() &&
                      static_cast<index_t>(plans.back().windows.size()) * slot_bytes >= workspace;
    if (plans.empty() || full) plans.push_back({level, channels, {}, {}, {}, {}, {}, {}});
    LevelPlan& plan = plans.back();
    planner.add_windows(heads[head], static_cast<index_t>(head), plan);
    for (const Cell& cell : planner.cells_of(heads[head], static_cast<index_t>(head))) {
      while (plan.width > kFewChannels && cell.size() * slot_bytes * plan.width > workspace)
        plan.width = std::max(ceil_div(plan.width, 2), kFewChannels);
      const bool fits = (held + cell.size()) * slot_bytes * plan.width <= workspace;
      const bool new_chunk = plan.chunks.empty() || !fits;
      held = new_chunk ? cell.size() : held + cell.size();
      planner.add_cell(cell, new_chunk, plan);
    }
  }
  std::erase_if(plans, [](const LevelPlan& plan) { return plan.chunks.empty(); });
  return plans;
}

}  // namespace convbasis::cuda
