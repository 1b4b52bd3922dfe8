#include <algorithm>
#include <limits>
#include <numeric>

#include "check.h"
#include "convbasis/error.h"
#include "core/mask.h"
#include "cpu/simd/kernels.h"
#include "cpu/visible.h"
#include "masks.h"

using namespace convbasis;

namespace {

/// What a tile says that its rows see of the keys, entry by entry; false when segments overlap.
bool read(const TileSight& tile, index_t rows, std::vector<std::vector<char>>& seen) {
  index_t before = 0;
  bool apart = true;
  for (const KeyRange& segment : tile.segments()) {
    apart = apart && before <= segment.first && segment.first < segment.last;
    before = segment.last;
    for (index_t first = segment.first; first < segment.last;) {
      const index_t last = std::min(first / 96 * 96 + 96, segment.last);
      for (index_t r = 0; r < rows; ++r) {
        std::vector<char>& row = seen[static_cast<std::size_t>(r)];
        const auto [begin, end] = tile.row(r).within(first, last);
        const RowSight& sight = tile.row(r);
        index_t count = 0;
        for (index_t j = begin; j < end; ++j) {
          const index_t at = j - sight.base;
          const bool sees = sight.bits == nullptr || (sight.bits[at / 64] >> (at % 64) & 1) != 0;
          row[static_cast<std::size_t>(j)] = sees;
          count += sees;
        }
        apart = apart && sight.count_seen({begin, end}) == count;
      }
      first = last;
    }
  }
  return apart;
}

/// Every tile of `most` rows and `width` keys shows what the matrix does.
void check_tiles(const sample::Case& one, bool is_causal, index_t most, index_t width) {
  const auto [n_q, n_kv] = one.dense.shape;
  const VisibleKeys visible("visible", one.mask, is_causal, n_q, n_kv);
  const std::vector<index_t> keys = positions(visible.key_order(), n_kv);
  const std::vector<index_t> queries = positions(visible.query_order(), n_q);
  TileSight tile;
  index_t wrong = 0;
  for (index_t first = 0; first < n_q; first += most) {
    const auto rows = std::span(queries).subspan(
        static_cast<std::size_t>(first), static_cast<std::size_t>(std::min(most, n_q - first)));
    std::vector<std::vector<char>> seen(rows.size(),
                                        std::vector<char>(static_cast<std::size_t>(n_kv)));
    for (index_t key = 0; key < n_kv; key += width) {
      visible.look(rows, {key, std::min(key + width, n_kv)}, tile);
      if (!read(tile, static_cast<index_t>(rows.size()), seen)) ++wrong;
    }
    for (std::size_t r = 0; r < rows.size(); ++r)
      for (std::size_t j = 0; j < keys.size(); ++j) {
        const bool want = one.dense.at(rows[r], keys[j]) && (!is_causal || keys[j] <= rows[r]);
        if (want != (seen[r][j] != 0)) ++wrong;
      }
  }
  if (wrong != 0) check::fail(__FILE__, __LINE__, one.name, " is wrong for ", n_q, " x ", n_kv);
}

/// Keys in the segments of all tiles: what attention computes.
index_t visited(const Mask& mask, bool is_causal, index_t n) {
  constexpr index_t kRows = 64;
  const VisibleKeys visible("visible", mask, is_causal, n, n);
  const std::vector<index_t> queries = positions(visible.query_order(), n);
  TileSight tile;
  index_t keys = 0;
  for (index_t first = 0; first < n; first += kRows) {
    visible.look(std::span(queries).subspan(static_cast<std::size_t>(first), kRows), tile);
    for (const KeyRange& segment : tile.segments()) keys += segment.last - segment.first;
  }
  return keys;
}

constexpr std::array<std::array<index_t, 2>, 9> kSizes{
    {{1, 1}, {1, 5}, {7, 2}, {63, 65}, {64, 64}, {65, 130}, {130, 65}, {129, 300}, {300, 127}}};

}  // namespace

TEST(tiles_show_what_the_masks_do) {
  for (const auto [n_q, n_kv] : kSizes) {
    const sample::Cases cases(n_q, n_kv, 7);
    for (const sample::Case& one : cases.all())
      for (const bool is_causal : {false, true}) {
        check_tiles(one, is_causal, 64, 1024);
        check_tiles(one, is_causal, 17, 128);
      }
  }
}

TEST(rows_may_be_any_that_rise) {
  const sample::Cases cases(200, 150, 8);
  const std::vector<index_t> rows{3, 3, 50, 64, 65, 180, 180};
  for (const sample::Case& one : cases.all()) {
    const VisibleKeys visible("visible", one.mask, true, 200, 150);
    const std::vector<index_t> keys = positions(visible.key_order(), 150);
    TileSight tile;
    visible.look(rows, tile);
    std::vector<std::vector<char>> seen(rows.size(), std::vector<char>(150));
    CHECK(read(tile, static_cast<index_t>(rows.size()), seen));
    bool same = true;
    for (std::size_t r = 0; r < rows.size(); ++r)
      for (std::size_t j = 0; j < 150; ++j)
        same = same && (seen[r][j] != 0) == (one.dense.at(rows[r], keys[j]) && keys[j] <= rows[r]);
    if (!same) check::fail(__FILE__, __LINE__, one.name, " is wrong");
  }
}

TEST(windows_cost_what_they_show) {
  constexpr index_t kSize = 100;
  const std::vector<index_t> tokens{0, 1000, 4000};
  for (const index_t n : {index_t{4096}, index_t{16384}}) {
    const index_t tiles = n / 64;
    CHECK(visited(masks::SlidingWindow{kSize}, false, n) <= tiles * (2 * kSize + 64));
    CHECK(visited(masks::SlidingWindow{kSize}, true, n) <= tiles * (kSize + 64));
    // The first tile holds the three rows that see everything.
    CHECK(visited(masks::Longformer{kSize, tokens}, false, n) <= n + tiles * (2 * kSize + 70));
    CHECK(visited(std::monostate{}, false, n) == tiles * n);
  }
}

TEST(tiles_of_hidden_keys_are_left_out) {
  constexpr index_t kN = 4096;
  const sample::Bools patterns(1, kN);
  for (index_t j = 1000; j < 1100; ++j) patterns.at(0, j) = true;
  const std::vector<index_t> which(kN);
  constexpr index_t kTiles = kN / 64, kMost = kTiles * 3 * 64;
  const index_t by_row = visited(masks::DistinctRows{which, patterns.view()}, false, kN);
  CHECK(0 < by_row && by_row <= kMost);
  const index_t by_column = visited(masks::DistinctColumns{which, patterns.view()}, false, kN);
  CHECK(by_column == 3 * kN);  // of the tiles that hold rows 1000 to 1099
  std::vector<index_t> offsets(kN), first(100);
  std::iota(first.begin(), first.end(), index_t{1000});
  const masks::KeyLists none{{}, offsets};
  const index_t by_change = visited(masks::RowChange{first, none, none}, false, kN);
  CHECK(0 < by_change && by_change <= kMost);
}

TEST(hidden_numbers_are_those_without_a_bit) {
  constexpr std::uint64_t kWords[3] = {0x8f00ff0123456789, 0, ~std::uint64_t{0}};
  const auto check_build = [&]<class T>(const Kernels<T>& simd, T other) {
    for (index_t at = 0; at < 66; ++at) {
      std::vector<T> x(120, std::numeric_limits<T>::quiet_NaN());
      simd.hide(x.data(), kWords, at, other, 120);
      for (std::size_t i = 0, j = static_cast<std::size_t>(at); i < 120; ++i, ++j)
        CHECK((kWords[j / 64] >> (j % 64) & 1) == 1 ? std::isnan(x[i]) : x[i] == other);
    }
  };
  for (const Kernels<float>* simd : available_kernels<float>()) check_build(*simd, 7.0F);
  for (const Kernels<double>* simd : available_kernels<double>()) check_build(*simd, 7.0);
}

TEST(masks_that_do_not_fit_are_refused) {
  const std::vector<index_t> none, zeros(3), ones(3, 1), high(3, 5), low(3, -1), falling{1, 0, 0};
  const std::vector<index_t> rising{0, 1, 2};
  const auto wrong = [](const Mask& mask, const char* message) {
    CHECK_THROWS(require_mask("attend", mask, 3, 4), InvalidArgument, "[attend] mask.");
    CHECK_THROWS(require_mask("attend", mask, 3, 4), InvalidArgument, message);
  };
  using namespace masks;
  wrong(RowWindow{none, ones}, "start has the wrong length; expected 3, one for each query; got 0");
  wrong(RowWindow{zeros, none}, "stop has the wrong length");
  wrong(RowWindow{low, ones}, "start is negative");
  wrong(RowWindow{ones, zeros}, "stop is before start in row 0; expected at least 1; got 0");
  wrong(RowWindow{zeros, high}, "stop is past the last key; expected at most 4; got 5");
  const KeyLists empty{none, zeros}, two{std::span(ones).first(2), rising};
  wrong(RowChange{high, empty, empty}, "first_row holds a number that is no key");
  wrong(RowChange{none, {none, none}, empty}, "added.offsets has the wrong length");
  wrong(RowChange{none, {none, ones}, empty}, "added.offsets does not start at 0");
  wrong(RowChange{none, empty, {none, falling}},
        "removed.offsets does not rise; expected at least 1; got 0");
  wrong(RowChange{none, empty, {none, rising}}, "removed.keys has the wrong length; expected 2");
  wrong(RowChange{none, {std::span(low).first(2), rising}, empty}, "added.keys holds a number");
  const sample::Bools rows(2, 4), columns(2, 3);
  wrong(DistinctRows{none, rows.view()}, "pattern_of_row has the wrong length");
  wrong(DistinctRows{zeros, columns.view()}, "patterns have the wrong length; expected 4");
  wrong(DistinctRows{high, rows.view()}, "pattern_of_row holds a number that is no pattern");
  wrong(DistinctColumns{zeros, columns.view()}, "pattern_of_column has the wrong length");
  wrong(SlidingWindow{0}, "size is too small; expected at least 1; got 0");
  wrong(Longformer{0, none}, "window is too small");
  wrong(Longformer{1, high}, "global_tokens holds a number that is no token");
  wrong(Longformer{1, ones}, "global_tokens does not rise; expected more than 1; got 1");

  const auto walk = [](const Mask& mask, const char* message) {
    CHECK_THROWS(VisibleKeys("attend", mask, false, 3, 4), InvalidArgument, message);
  };
  walk(RowChange{ones, empty, empty}, "[attend] mask.added changes a key for row 0 that is seen");
  walk(RowChange{none, two, empty}, "got key 1");
  walk(RowChange{none, empty, two}, "mask.removed changes a key for row 1 that is not seen");
  walk(RowChange{none, two, two}, "mask.removed");
}
