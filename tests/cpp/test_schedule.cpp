#include <algorithm>
#include <bit>
#include <cstdint>

#include "check.h"
#include "convbasis/cost_model.h"
#include "core/schedule.h"

using namespace convbasis;

namespace {

/// Nanoseconds of an AVX-512 machine in float.
constexpr CostModel kModel{0.1, 0.05, 0.01, 0.04, 4};

std::vector<StripLayout> layouts() {
  std::vector<StripLayout> all{{0, 0, {}},
                               {1, 1, {0}},
                               {5, 5, {}},
                               {17, 17, {3}},
                               {64, 64, {0}},
                               {65, 65, {0, 63, 64}},
                               {100, 40, {0, 7, 8}},
                               {130, 1, {0}},
                               {128, 128, {0, 16, 32, 64}},
                               {127, 97, {31, 32, 33, 90}}};
  StripLayout every_column{33, 33, {}};
  for (index_t j = 0; j < 33; ++j) every_column.starts.push_back(j);
  all.push_back(every_column);
  return all;
}

}  // namespace

TEST(pieces_cover_every_column_of_every_strip_once) {
  for (const StripLayout& strips : layouts()) {
    for (const index_t block : {1, 2, 8, 64, 256}) {
      const Pieces pieces = cut_into_pieces(strips, block);
      const index_t blocks = (strips.rows + block - 1) / block;
      CHECK(pieces.first.size() == static_cast<std::size_t>(blocks) + 1);
      CHECK(pieces.first.front() == 0);
      CHECK(pieces.first.back() == static_cast<index_t>(pieces.list.size()));
      index_t next = strips.count() > 0 ? strips.begin(0) : strips.columns;
      for (std::size_t p = 0; p < pieces.list.size(); ++p) {
        const Piece& piece = pieces.list[p];
        CHECK(piece.begin == next && piece.begin < piece.end);
        CHECK(piece.begin >= strips.begin(piece.strip) && piece.end <= strips.end(piece.strip));
        CHECK(piece.begin / block == piece.block && (piece.end - 1) / block == piece.block);
        const auto b = static_cast<std::size_t>(piece.block);
        CHECK(pieces.first[b] <= static_cast<index_t>(p));
        CHECK(static_cast<index_t>(p) < pieces.first[b + 1]);
        next = piece.end;
      }
      CHECK(next == strips.columns);
    }
  }
}

TEST(lags_reach_from_a_strip_to_the_last_block_it_meets) {
  for (const StripLayout& strips : layouts()) {
    for (const Level level : {Level{8, 256}, Level{16, 32}, Level{64, 128}, Level{1, 4}}) {
      const index_t per_span = level.span / level.block;
      for (index_t r = 0; r < strips.count(); ++r) {
        index_t needed = 0;  // the largest lag of a pair of blocks of one span
        for (index_t j = strips.begin(r); j < strips.end(r); ++j)
          for (index_t i = j; i < strips.rows; ++i)
            if (i / level.span == j / level.span)
              needed = std::max(needed, i / level.block - j / level.block);
        const index_t planned = max_block_lag(strips, r, level);
        CHECK(planned >= needed && planned < std::max<index_t>(per_span, 1));
      }
    }
  }
}

TEST(chosen_schedules_are_nested_powers_of_two) {
  bool has_one_level = false, has_two_levels = false;
  for (const index_t rows : {0, 1, 2, 63, 64, 65, 127, 1000, 4096, 65536, 65537, 1000003}) {
    for (const index_t strips : {0, 1, 2, 16, 64, 1000}) {
      for (const index_t channels : {0, 1, 8, 64, 128}) {
        StripLayout layout{rows, rows, {}};
        for (index_t r = 0; r < std::min(strips, rows); ++r)
          layout.starts.push_back(r * rows / strips);
        const Schedule schedule = choose_schedule(layout, channels, kModel);
        const auto is_power = [](index_t n) {
          return n > 0 && std::has_single_bit(static_cast<std::uint64_t>(n));
        };
        index_t above = schedule.levels.empty() ? schedule.diagonal : schedule.levels[0].span;
        CHECK(is_power(above) && above >= rows);  // the outermost span is everything
        for (const Level& level : schedule.levels) {
          CHECK(is_power(level.block) && level.block < level.span && level.span == above);
          above = level.block;
        }
        CHECK(schedule.diagonal == above);
        has_one_level |= schedule.levels.size() == 1;
        has_two_levels |= schedule.levels.size() == 2;
      }
    }
  }
  CHECK(has_one_level && has_two_levels);
}

TEST(a_small_problem_is_one_direct_tile) {
  const Schedule schedule = choose_schedule({17, 17, {0}}, 8, kModel);
  CHECK(schedule.levels.empty() && schedule.diagonal == 32);
}

TEST(break_even_grows_with_n_and_stays_between_its_bounds) {
  for (const index_t head_dim : {1, 16, 64, 128, 256}) {
    for (const index_t value_dim : {1, 64, 128}) {
      index_t before = 0;
      for (const index_t n :
           {0,    1,    2,    17,   63,   64,    65,    100,   200,    256,    400,    512,
            1000, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 100000, 131072, 262144, 1 << 20}) {
        const index_t k = break_even(n, head_dim, value_dim, kModel);
        CHECK(k >= std::min<index_t>(n, 64) && k <= n);
        CHECK(k >= before);
        before = k;
      }
    }
  }
  CHECK(break_even(65536, 64, 64, kModel) > 64);  // the model says something, not only the floor
}
