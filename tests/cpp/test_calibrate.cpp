#include <algorithm>
#include <cmath>
#include <vector>

#include "builds.h"
#include "check.h"
#include "convbasis/attention.h"
#include "convbasis/calibrate.h"
#include "convbasis/error.h"
#include "cpu/far_fit.h"
#include "cpu/key_selection.h"

using namespace convbasis;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Query, key and value of some heads, random, and what attention of them gives.
template <class T>
struct Heads {
  Heads(index_t count, index_t n, index_t d = 8)
      : heads(count),
        rows(n),
        dim(d),
        query(random_numbers<T>(count * n * d, 1)),
        key(random_numbers<T>(count * n * d, 2)),
        value(random_numbers<T>(count * n * d, 3)) {}

  [[nodiscard]] View<const T, 4> view(const std::vector<T>& array) const {
    return contiguous_view<const T, 4>(array.data(), {1, heads, rows, dim});
  }
  [[nodiscard]] SelfAttention<T> attention() const {
    return {view(query), view(key), view(value), causal()};
  }
  [[nodiscard]] Calibration<T> calibrated(const CalibrateOptions& options, int threads = 1) const {
    return calibrate(attention(), options, {threads});
  }
  [[nodiscard]] std::vector<T> attend(const Calibration<T>& calibration, int threads = 1) const {
    std::vector<T> out(value.size()), share(at(heads * rows));
    std::vector<double> norms(share.size());
    calibrated_attention<T>(attention(), calibration, write(out), {},
                            contiguous_view<T, 3>(share.data(), {1, heads, rows}),
                            contiguous_view<double, 3>(norms.data(), {1, heads, rows}), {},
                            {threads});
    for (std::size_t i = 0; i < norms.size(); ++i) {
      double square = 0;
      for (index_t c = 0; c < dim; ++c) {
        const auto y = static_cast<double>(out[i * at(dim) + at(c)]);
        square += y * y;
      }
      CHECK_NEAR(norms[i], std::sqrt(square), 1e-5 * norms[i]);
    }
    return out;
  }
  [[nodiscard]] std::vector<T> exact() const {
    std::vector<T> out(value.size());
    exact_attention<T>(view(query), view(key), view(value), write(out), {}, causal());
    return out;
  }
  [[nodiscard]] View<T, 4> write(std::vector<T>& array) const {
    return contiguous_view<T, 4>(array.data(), {1, heads, rows, dim});
  }
  static AttentionOptions causal() {
    AttentionOptions options;
    options.is_causal = true;
    return options;
  }

  index_t heads, rows, dim;
  std::vector<T> query, key, value;
};

template <class T>
double largest_difference(const std::vector<T>& a, const std::vector<T>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

}  // namespace

TEST(calibrate_takes_short_heads_exactly) {
  for (const index_t n : {1, 2, 63, 64, 65, 130, 255, 256}) {
    const Heads<double> problem(2, n);
    CHECK_NEAR(largest_difference(problem.attend(problem.calibrated({})), problem.exact()), 0.0,
               1e-13);
  }
}

TEST(calibrate_fits_what_is_there) {
  // Attention that is alpha_i * key_j beyond the near blocks, and a single lag that stands out.
  constexpr index_t kRows = 1000, kNear = 1, kLag = 300;
  std::vector<double> keys(kRows);
  for (index_t j = 0; j < kRows; ++j) keys[at(j)] = j % 2 == 0 ? 1.5 : 0.5;
  std::vector<index_t> rows;
  for (index_t i = 400; i < kRows; i += 4) rows.push_back(i);
  std::vector<double> weights(rows.size() * at(kRows)), sums;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    double sum = 0;
    for (index_t j = 0; j <= rows[r]; ++j)
      sum += weights[r * at(kRows) + at(j)] = keys[at(j)] * (rows[r] - j == kLag ? 400 : 1);
    sums.push_back(sum);
  }
  FarMasses masses(kRows, kNear);
  const Rows<const double> matrix{weights.data(), kRows};
  masses.add<double>(rows, matrix, sums);
  const auto total = [](const std::vector<double>& parts) {
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum;
  };
  const auto check_totals = [&] {
    const double by_row = total(masses.of_rows());
    for (const auto* parts : {&masses.of_keys(), &masses.of_lags(), &masses.of_block_lags()})
      CHECK_NEAR(total(*parts), by_row, 1e-9 * by_row);
    return by_row;
  };
  const double whole = check_totals();
  CHECK(masses.of_block_lags()[kNear] == 0 && masses.of_block_lags()[kNear + 1] > 0);
  CHECK(masses.of_lags()[(kNear * kKeyBlock)] == 0);
  CHECK(masses.single_lags() == std::vector<index_t>{kLag});
  const double part = masses.of_lags()[kLag];
  CHECK(part > 0.2 * whole);
  masses.leave_out<double>(masses.single_lags(), rows, matrix, sums);
  CHECK_NEAR(check_totals(), whole - part, 1e-9 * whole);
  CHECK(masses.of_lags()[kLag] < 1e-12 * part && masses.single_lags().empty());

  const FarWeights fitted = fit_far(masses);
  CHECK_NEAR(total(fitted.keys), double{kRows}, 1e-9);
  CHECK_NEAR(total(fitted.block_lags), 1.0 / kKeyBlock, 1e-12);
  CHECK(fitted.block_lags[kNear] == 0);
  for (std::size_t lag = kNear + 1; lag < 12; ++lag)  // equal, but for what few rows tell
    CHECK(std::abs(fitted.block_lags[lag] * kKeyBlock * 14 - 1) < 0.25);
  for (index_t j = 100; j < 300; j += 2)  // drawn to equal weights a little
    CHECK(fitted.keys[at(j)] > 1.5 * fitted.keys[at(j + 1)]);
}

TEST(calibrate_takes_each_key_once) {
  const index_t n = 1000;
  const Heads<double> problem(2, n);
  CalibrateOptions options;
  options.window = 70;
  options.retrieval_blocks = 2;
  const Calibration<double> found = problem.calibrated(options);
  for (index_t flat = 0; flat < 2; ++flat) {
    const HeadCalibration<double>& head = found.heads[at(flat)];
    const FarKeys<double> far(found, head, flat, {}, 0);
    for (index_t block = 0; block < ceil_div(n, kKeyBlock); ++block) {
      const KeySelection selection = select_keys(found, head, block);
      const index_t end = std::min((block + 1) * kKeyBlock, n);
      std::vector<int> times(at(end), 0);
      for (const auto* ranges : {&selection.exact, &selection.far})
        for (const KeyRange& range : *ranges)
          for (index_t j = range.first; j < range.last; ++j) ++times[at(j)];
      for (const int count : times) CHECK(count == 1);
      CHECK(selection.exact.back().last == end);
      CHECK(selection.far.empty() == (block < kWholeBlocks));
      for (const index_t key : far.draw(selection, block).keys) {
        CHECK(std::any_of(selection.far.begin(), selection.far.end(), [&](const KeyRange& range) {
          return range.first <= key && key < range.last;
        }));
        CHECK(!std::binary_search(head.heavy.begin(), head.heavy.end(), key));
      }
    }
  }
}

TEST(calibrate_draws_are_right_in_the_mean) {
  const index_t n = 1000, block = 12;
  constexpr int kSeeds = 4000;
  const Heads<double> problem(1, n);
  CalibrateOptions options;
  options.sample_keys = 8;
  Calibration<double> found = problem.calibrated(options);
  const HeadCalibration<double>& head = found.heads[0];
  const KeySelection selection = select_keys(found, head, block);
  const std::vector<double> f = random_numbers<double>(n, 9);
  double want = 0, mean = 0, square = 0;
  for (const KeyRange& range : selection.far)
    for (index_t j = range.first; j < range.last; ++j)
      if (head.key_weights[at(j)] > 0) want += f[at(j)];
  for (int seed = 0; seed < kSeeds; ++seed) {
    found.options.seed = static_cast<std::uint64_t>(seed);
    const FarDraw<double> draw = FarKeys<double>(found, head, 0, {}, 0).draw(selection, block);
    CHECK(draw.keys.size() == 8);
    double sum = 0;
    for (std::size_t s = 0; s < draw.keys.size(); ++s)
      sum += draw.step * f[at(draw.keys[s])] * draw.reciprocals[s];
    mean += sum / kSeeds;
    square += sum * sum / kSeeds;
  }
  CHECK(square > mean * mean);
  CHECK_NEAR(mean, want, 4 * std::sqrt((square - mean * mean) / kSeeds));
}

TEST(calibrate_does_not_depend_on_threads) {
  for (const index_t heads : {1, 5}) {
    const Heads<float> problem(heads, 1100);
    CalibrateOptions options;
    options.tol = 0.9;
    const Calibration<float> one = problem.calibrated(options, 1);
    const std::vector<float> want = problem.attend(one, 1);
    for (const int threads : {2, 3}) {
      const Calibration<float> found = problem.calibrated(options, threads);
      for (index_t h = 0; h < heads; ++h) {
        const auto &a = one.heads[at(h)], &b = found.heads[at(h)];
        CHECK(a.heavy == b.heavy && a.ranked == b.ranked && a.key_weights == b.key_weights);
        CHECK(a.lag_weights == b.lag_weights && a.sample_error == b.sample_error);
        CHECK(a.retrieved == b.retrieved && a.has_far == b.has_far && a.lags == b.lags);
      }
      CHECK(problem.attend(found, threads) == want);
    }
  }
}

TEST(exact_blocks_writes_its_blocks_alone) {
  const Heads<double> problem(2, 300);
  const index_t count = ceil_div(problem.rows, kKeyBlock);
  std::vector<char> blocks(at(2 * count), 0);
  blocks[1] = blocks[at(count - 1)] = blocks[at(count)] = 1;
  const std::vector<double> want = problem.exact();
  std::vector<double> out(want.size(), 7.0), lse(at(2 * problem.rows), 7.0);
  exact_blocks<double>(problem.attention(), blocks, problem.write(out),
                       contiguous_view<double, 3>(lse.data(), {1, 2, problem.rows}));
  for (index_t row = 0; row < 2 * problem.rows; ++row) {
    const bool listed =
        blocks[at(row / problem.rows * count + row % problem.rows / kKeyBlock)] != 0;
    CHECK((lse[at(row)] != 7.0) == listed);
    for (index_t c = 0; c < problem.dim; ++c) {
      const std::size_t place = at(row * problem.dim + c);
      CHECK_NEAR(out[place], listed ? want[place] : 7.0, 1e-13);
    }
  }
}

TEST(exact_rows_are_those_of_the_listed_heads) {
  const Heads<double> problem(3, 300);
  const std::vector<index_t> heads{2, 0}, rows{299, 0, 7, 7, 150, 64};  // any order, twice too
  std::vector<double> out(6 * at(problem.dim), 7.0);
  exact_rows<double>(problem.attention(), contiguous_view<const index_t, 2>(rows.data(), {2, 3}),
                     contiguous_view<double, 3>(out.data(), {2, 3, problem.dim}), heads);
  const std::vector<double> want = problem.exact();
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (index_t c = 0; c < problem.dim; ++c)
      CHECK_NEAR(out[i * at(problem.dim) + at(c)],
                 want[at((heads[i / 3] * problem.rows + rows[i]) * problem.dim + c)], 1e-13);
}

TEST(calibrate_names_what_is_wrong) {
  const Heads<float> problem(1, 80);
  const auto with = [&](auto member, auto value) {
    CalibrateOptions options;
    options.*member = value;
    return [&problem, options] { (void)problem.calibrated(options); };
  };
  CHECK_THROWS(with(&CalibrateOptions::window, 0)(), InvalidArgument,
               "[conv_attention] options.window is out of range; expected 1 or more");
  CHECK_THROWS(with(&CalibrateOptions::sinks, -1)(), InvalidArgument, "options.sinks");
  CHECK_THROWS(with(&CalibrateOptions::heavy_keys, -1)(), InvalidArgument, "options.heavy_keys");
  CHECK_THROWS(with(&CalibrateOptions::retrieval_blocks, -1)(), InvalidArgument,
               "options.retrieval_blocks");
  CHECK_THROWS(with(&CalibrateOptions::sample_rows, 0)(), InvalidArgument, "options.sample_rows");
  CHECK_THROWS(with(&CalibrateOptions::sample_keys, 0)(), InvalidArgument, "options.sample_keys");
  CHECK_THROWS(with(&CalibrateOptions::tol, NAN)(), InvalidArgument, "options.tol");
  const Heads<float> shorter(1, 70);
  CHECK_THROWS((SelfAttention<float>(problem.view(problem.query), shorter.view(shorter.key),
                                     shorter.view(shorter.value))),
               InvalidArgument, "key has 70 rows; expected as many as query");
  CHECK_THROWS((void)problem.attend(shorter.calibrated({})), InvalidArgument,
               "calibration is of other arrays");
  std::vector<float> out(problem.value.size());
  CHECK_THROWS(
      exact_blocks<float>(problem.attention(), std::vector<char>(3), problem.write(out), {}),
      InvalidArgument, "blocks has 3 entries");
  const index_t last = 80;
  CHECK_THROWS(
      exact_rows<float>(problem.attention(), contiguous_view<const index_t, 2>(&last, {1, 1}),
                        contiguous_view<float, 3>(out.data(), {1, 1, problem.dim})),
      InvalidArgument, "rows holds 80; expected 0 <= row < 80");
}
