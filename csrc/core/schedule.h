#pragma once

#include <vector>

#include "convbasis/cost_model.h"
#include "convbasis/types.h"

namespace convbasis {

/// Strips of one head by their columns: strip r is [starts[r], starts[r + 1]), the last one ends at
/// columns.
struct StripLayout {
  index_t rows = 0, columns = 0;
  std::vector<index_t> starts;

  [[nodiscard]] index_t count() const { return static_cast<index_t>(starts.size()); }
  [[nodiscard]] index_t begin(index_t r) const { return starts[static_cast<std::size_t>(r)]; }
  [[nodiscard]] index_t end(index_t r) const { return r + 1 < count() ? begin(r + 1) : columns; }
};

/// Rows are cut into blocks of `block` rows; blocks interact inside spans of `span` rows. The level
/// below works inside a block, so its span is this block.
struct Level {
  index_t block, span;
};

/// Levels, outermost first; products inside a block of `diagonal` rows are direct.
struct Schedule {
  std::vector<Level> levels;
  index_t diagonal = 0;
};

/// Part of a strip inside one block of a level.
struct Piece {
  index_t strip, block, begin, end;
};

/// Pieces of a level in order of their columns, and where each block's begin: [first[b],
/// first[b + 1]).
struct Pieces {
  std::vector<Piece> list;
  std::vector<index_t> first;
};
[[nodiscard]] Pieces cut_into_pieces(const StripLayout& strips, index_t block);

/// Most pieces that one span of a level has.
[[nodiscard]] index_t most_pieces(const StripLayout& strips, const Level& level);

/// Block lags of a strip that a level needs: 1 .. max_lag, 0 when it needs none.
[[nodiscard]] index_t max_block_lag(const StripLayout& strips, index_t strip, const Level& level);

/// Nanoseconds of one thread by stage, by the cost model.
struct StageCosts {
  double transform = 0, products = 0, inverse = 0, diagonal = 0;
};
[[nodiscard]] StageCosts stage_costs(const StripLayout& strips, index_t channels,
                                     const Schedule& schedule, const CostModel& model);

/// The cheapest schedule for these strips by the cost model.
[[nodiscard]] Schedule choose_schedule(const StripLayout& strips, index_t channels,
                                       const CostModel& model);

/// break_even() is never below min(seq, kFewBases): small problems take microseconds either way.
constexpr index_t kFewBases = 64;

/// Number of strips from which exact attention is expected to be cheaper: a power of two or seq.
[[nodiscard]] index_t break_even(index_t seq, index_t head_dim, index_t value_dim,
                                 const CostModel& model);

}  // namespace convbasis
