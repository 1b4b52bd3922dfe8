#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/attention.h"
#include "convbasis/error.h"

using namespace convbasis;

namespace {

template <class T>
constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

/// (batch, heads, n, dim) random numbers, seen packed or through odd strides.
template <class T>
struct Array {
  enum class Layout { packed, transposed, backwards };
  Array(const std::array<index_t, 4>& shape, unsigned seed, Layout layout = Layout::packed,
        double spread = 1)
      : data(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3] + 1)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (T& number : data) number = static_cast<T>(spread * normal(random));
    view = contiguous_view<T, 4>(data.data() + 1, shape);  // misaligned
    if (layout == Layout::transposed) {                    // (dim, n, heads, batch)
      const auto [batch, heads, n, dim] = shape;
      view.strides = {1, batch, batch * heads, batch * heads * n};
    }
    if (layout == Layout::backwards) {
      for (std::size_t axis = 0; axis < 4; ++axis) {
        view.data += view.strides[axis] * std::max<index_t>(shape[axis] - 1, 0);
        view.strides[axis] *= -1;
      }
    }
  }
  std::vector<T> data;
  View<T, 4> view;
};
using Layout = Array<float>::Layout;

struct Sizes {
  index_t batch, heads, kv_heads, n_q, n_kv, dim, value_dim;
};

template <class T>
struct Problem {
  explicit Problem(const Sizes& s, typename Array<T>::Layout layout = Array<T>::Layout::packed,
                   double spread = 1)
      : query({s.batch, s.heads, s.n_q, s.dim}, 1, layout, spread),
        key({s.batch, s.kv_heads, s.n_kv, s.dim}, 2, layout, spread),
        value({s.batch, s.kv_heads, s.n_kv, s.value_dim}, 3, layout),
        out({s.batch, s.heads, s.n_q, s.value_dim}, 4, layout),
        lse({s.batch, s.heads, s.n_q, 1}, 5, layout) {}

  [[nodiscard]] View<T, 3> lse_view() const {
    return {lse.view.data,
            {lse.view.shape[0], lse.view.shape[1], lse.view.shape[2]},
            {lse.view.strides[0], lse.view.strides[1], lse.view.strides[2]}};
  }
  void run(const AttentionOptions& options, std::span<const index_t> heads = {}, int threads = 2) {
    exact_attention<T>(query.view, key.view, value.view, out.view, lse_view(), options, heads,
                       {threads});
  }

  /// Checks query row `row` of a head, found as row `at` of an output.
  void check_row(const AttentionOptions& options, index_t b, index_t h, index_t row,
                 const View<T, 4>& got, const View<T, 3>& got_lse, index_t at) const {
    const auto [batch, heads, n_q, dim] = query.view.shape;
    const index_t g = h / (heads / key.view.shape[1]), keys = key.view.shape[2];
    const index_t visible = options.is_causal ? std::min(row + 1, keys) : keys;
    const long double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(dim)));
    std::vector<long double> logits;
    long double top = -std::numeric_limits<long double>::infinity(), dot_size = 0, sum = 0;
    for (index_t j = 0; j < visible; ++j) {
      long double dot = 0, size = 0;
      for (index_t c = 0; c < dim; ++c) {
        const long double term = static_cast<long double>(query.view(b, h, row, c)) *
                                 static_cast<long double>(key.view(b, g, j, c));
        dot += term;
        size += std::abs(term);
      }
      logits.push_back(scale * dot);
      top = std::max(top, logits.back());
      dot_size = std::max(dot_size, std::abs(scale) * size);
    }
    for (long double& logit : logits) sum += logit = std::exp(logit - top);
    // A logit errs by half an eps of its products for every addition, the weight by as much
    // relatively; the sum of weighted values by half an eps for every key.
    const double relative =
        kEps<T> * (static_cast<double>(dim + 2) * static_cast<double>(dot_size) +
                   static_cast<double>(visible) / 2 + 3);
    double worst = 0;
    for (index_t c = 0; c < value.view.shape[3]; ++c) {
      long double mean = 0, size = 0;
      for (index_t j = 0; j < visible; ++j) {
        const long double term =
            logits[static_cast<std::size_t>(j)] * static_cast<long double>(value.view(b, g, j, c));
        mean += term;
        size += std::abs(term);
      }
      const long double error = std::abs(static_cast<long double>(got(b, h, at, c)) - mean / sum);
      worst = error <= relative * size / sum ? worst : std::numeric_limits<double>::infinity();
      if (visible > 0) zeros_would_fail = zeros_would_fail || std::abs(mean) > 20 * relative * size;
      if (visible == 0) CHECK(got(b, h, at, c) == 0);
    }
    if (visible == 0) {
      CHECK(got_lse(b, h, at) == -std::numeric_limits<T>::infinity());
      return;
    }
    CHECK_NEAR(worst, 0.0, 0.0);
    const auto want_lse = static_cast<double>(top + std::log(sum));
    CHECK_NEAR(static_cast<double>(got_lse(b, h, at)), want_lse,
               relative + kEps<T> * std::abs(want_lse));
  }
  void check_all(const AttentionOptions& options) const {
    const auto [batch, heads, n_q, dim] = query.view.shape;
    for (index_t b = 0; b < batch; ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < n_q; ++i) check_row(options, b, h, i, out.view, lse_view(), i);
    CHECK(zeros_would_fail || out.view.size() == 0 || key.view.shape[2] == 0);
  }

  Array<T> query, key, value, out, lse;
  mutable bool zeros_would_fail = false;
};

template <class T>
void check_exact(const Sizes& sizes, bool is_causal, std::optional<double> scale = {},
                 typename Array<T>::Layout layout = Array<T>::Layout::packed) {
  Problem<T> problem(sizes, layout);
  const AttentionOptions options{scale, is_causal};
  problem.run(options);
  problem.check_all(options);
}

}  // namespace

TEST(exact_attention_matches_plain_loops) {
  for (const bool is_causal : {false, true}) {
    for (const index_t n : {1, 2, 3, 5, 7, 16, 17, 33, 65, 97, 127, 128, 129, 257}) {
      check_exact<float>({1, 1, 1, n, n, 8, 4}, is_causal);
      check_exact<double>({1, 1, 1, n, n, 5, 3}, is_causal, 0.3);
    }
    check_exact<float>({2, 3, 3, 9, 9, 1, 1}, is_causal, -2.0);  // a negative scale
    check_exact<double>({2, 3, 3, 9, 9, 64, 1}, is_causal, 0.0);
  }
}

TEST(exact_attention_with_other_numbers_of_queries_and_keys) {
  for (const bool is_causal : {false, true}) {
    for (const auto& [n_q, n_kv] : std::vector<std::pair<index_t, index_t>>{
             {1, 300}, {300, 1}, {5, 130}, {130, 5}, {129, 257}, {257, 129}, {0, 4}, {4, 0}}) {
      check_exact<float>({1, 2, 1, n_q, n_kv, 4, 3}, is_causal);
      check_exact<double>({1, 2, 1, n_q, n_kv, 4, 3}, is_causal);
    }
  }
}

TEST(query_heads_share_key_heads) {
  for (const index_t kv_heads : {1, 2, 3, 6})
    check_exact<double>({2, 6, kv_heads, 7, 9, 4, 3}, true);
}

TEST(exact_attention_takes_any_strides) {
  for (const bool is_causal : {false, true}) {
    for (const Layout layout : {Layout::packed, Layout::transposed, Layout::backwards}) {
      check_exact<float>({2, 4, 2, 33, 40, 6, 5}, is_causal, {}, layout);
      check_exact<double>({1, 1, 1, 1, 1, 1, 1}, is_causal, {},
                          static_cast<Array<double>::Layout>(layout));
    }
  }
  // Inputs of stride 0: all keys and values alike.
  Problem<double> problem({1, 2, 1, 5, 9, 4, 3});
  problem.key.view.strides[2] = problem.value.view.strides[2] = problem.query.view.strides[1] = 0;
  problem.run({});
  problem.check_all({});
}

TEST(huge_logits_do_not_overflow) {
  for (const bool is_causal : {false, true}) {
    Problem<float> problem({1, 2, 2, 70, 300, 8, 4}, Layout::packed, 30);  // logits of thousands
    problem.run({{}, is_causal});
    problem.check_all({{}, is_causal});
  }
}

TEST(values_near_the_largest_number_do_not_overflow) {
  for (const bool is_causal : {false, true}) {
    Problem<float> problem({1, 2, 1, 20, 300, 4, 3});
    for (float& value : problem.value.data) value = std::copysign(3e38F, value);
    problem.run({{}, is_causal});
    problem.check_all({{}, is_causal});
  }
}

TEST(logits_that_overflow_are_refused) {
  Problem<float> problem({1, 1, 1, 3, 3, 4, 3}, Layout::packed, 1e25);
  CHECK_THROWS(problem.run({}), InvalidArgument, "overflow");
}

TEST(exact_attention_computes_the_listed_heads_alone) {
  Problem<double> all({2, 4, 2, 9, 9, 4, 3});
  all.run({});
  for (const std::vector<index_t>& listed : {std::vector<index_t>{5}, std::vector<index_t>{7, 0, 2},
                                             std::vector<index_t>{6, 5, 4, 3, 1}}) {
    Problem<double> some({2, 4, 2, 9, 9, 4, 3});
    const std::vector<double> out_before = some.out.data, lse_before = some.lse.data;
    some.run({}, listed);
    for (index_t head = 0; head < 8; ++head) {
      const bool is_listed = std::find(listed.begin(), listed.end(), head) != listed.end();
      const std::vector<double>&out = is_listed ? all.out.data : out_before,
            &lse = is_listed ? all.lse.data : lse_before;
      const index_t at = 1 + head * 27, row = 1 + head * 9;
      CHECK(std::equal(out.begin() + at, out.begin() + at + 27, some.out.data.begin() + at));
      CHECK(std::equal(lse.begin() + row, lse.begin() + row + 9, some.lse.data.begin() + row));
    }
  }
}

TEST(exact_attention_without_lse_or_channels) {
  Problem<float> problem({1, 2, 1, 20, 20, 4, 3});
  problem.run({});
  const std::vector<float> out = problem.out.data;
  std::fill(problem.out.data.begin() + 1, problem.out.data.end(), 77.F);
  exact_attention<float>(problem.query.view, problem.key.view, problem.value.view, problem.out.view,
                         {});
  CHECK(problem.out.data == out);
  Problem<float> no_channels({1, 2, 1, 20, 20, 4, 0});
  no_channels.run({});
  CHECK(no_channels.lse.data == problem.lse.data);
}

TEST(exact_attention_is_causal_and_threaded_bitwise) {
  Problem<float> problem({1, 1, 1, 200, 200, 8, 4});
  problem.run({{}, true}, {}, 1);
  const std::vector<float> out = problem.out.data;
  for (const int threads : {2, 5}) {
    problem.run({{}, true}, {}, threads);
    CHECK(problem.out.data == out);
  }
  for (index_t c = 0; c < 8; ++c) problem.key.view(0, 0, 150, c) = 9;
  problem.run({{}, true});
  CHECK(std::equal(out.begin(), out.begin() + 1 + 150 * 4, problem.out.data.begin()));
  CHECK(problem.out.view(0, 0, 150, 0) != out[1 + 150 * 4]);
}

TEST(attention_rows_gives_the_listed_rows_in_their_order) {
  for (const bool is_causal : {false, true}) {
    for (const auto& [n_q, n_kv] :
         std::vector<std::pair<index_t, index_t>>{{300, 300}, {300, 7}, {7, 300}, {5, 0}}) {
      const Problem<float> problem({2, 2, 1, n_q, n_kv, 4, 3}, Layout::transposed);
      constexpr index_t kListed = 5;
      std::vector<index_t> rows;
      for (index_t head = 0; head < 4; ++head)  // unordered, with one twice
        for (const index_t row : {n_q - 1, index_t{0}, head, n_q / 2, head}) rows.push_back(row);
      const Array<float> out({2, 2, kListed, 3}, 6, Layout::backwards);
      std::vector<float> lse(4 * kListed);
      const auto lse_view = contiguous_view<float, 3>(lse.data(), {2, 2, kListed});
      const auto listed = contiguous_view<const index_t, 3>(rows.data(), {2, 2, kListed});
      const AttentionOptions options{{}, is_causal};
      attention_rows<float>(problem.query.view, problem.key.view, problem.value.view, listed,
                            out.view, lse_view, options, {}, {2});
      for (index_t head = 0; head < 4; ++head)
        for (index_t r = 0; r < kListed; ++r)
          problem.check_row(options, head / 2, head % 2, listed(head / 2, head % 2, r), out.view,
                            lse_view, r);
      CHECK(problem.zeros_would_fail || n_kv == 0);
    }
  }
}

TEST(attention_rows_of_many_rows_cross_tiles) {
  const Problem<double> problem({1, 1, 1, 40, 40, 4, 3});
  std::vector<index_t> rows;
  for (index_t r = 0; r < 300; ++r) rows.push_back(r * 7 % 40);
  const Array<double> out({1, 1, 300, 3}, 6);
  std::vector<double> lse(300);
  const auto lse_view = contiguous_view<double, 3>(lse.data(), {1, 1, 300});
  attention_rows<double>(problem.query.view, problem.key.view, problem.value.view,
                         contiguous_view<const index_t, 3>(rows.data(), {1, 1, 300}), out.view,
                         lse_view, {{}, true});
  for (index_t r = 0; r < 300; ++r)
    problem.check_row({{}, true}, 0, 0, rows[static_cast<std::size_t>(r)], out.view, lse_view, r);
  CHECK(problem.zeros_would_fail);
}

TEST(attention_rows_of_long_sequences_put_ranges_of_keys_together) {
  // Early rows see one of the ranges, late ones all; one late key outweighs the others.
  constexpr index_t kRows = 2600;
  Problem<float> problem({1, 1, 1, kRows, kRows, 4, 3});
  for (index_t c = 0; c < 4; ++c) problem.key.view(0, 0, 2100, c) *= 9;
  for (const bool is_causal : {false, true}) {
    std::vector<index_t> rows{2599, 0, 1, 1023, 1024, 2047, 2048, 2100, 500, 1024};
    for (index_t r = 0; r < 200; ++r) rows.push_back(r * 13);
    const auto count = static_cast<index_t>(rows.size());
    const auto listed = contiguous_view<const index_t, 3>(rows.data(), {1, 1, count});
    std::vector<float> outputs[2], sums[2];
    for (const int threads : {1, 5}) {
      const auto i = static_cast<std::size_t>(threads > 1);
      outputs[i].resize(static_cast<std::size_t>(count * 3));
      sums[i].resize(static_cast<std::size_t>(count));
      const auto out = contiguous_view<float, 4>(outputs[i].data(), {1, 1, count, 3});
      const auto lse = contiguous_view<float, 3>(sums[i].data(), {1, 1, count});
      attention_rows<float>(problem.query.view, problem.key.view, problem.value.view, listed, out,
                            lse, {{}, is_causal}, {}, {threads});
      for (index_t r = 0; r < count; ++r)
        problem.check_row({{}, is_causal}, 0, 0, rows[static_cast<std::size_t>(r)], out, lse, r);
    }
    CHECK(outputs[0] == outputs[1] && sums[0] == sums[1]);
  }
  CHECK(problem.zeros_would_fail);
}

TEST(first_not_finite_names_the_first_of_the_arrays) {
  Array<float> arrays[3] = {{{1, 2, 1500, 2}, 1},
                            {{1, 1, 7, 3}, 2, Layout::transposed},
                            {{2, 1, 1030, 1}, 3, Layout::backwards}};
  const std::vector<View<const float, 4>> views{arrays[0].view, arrays[1].view, arrays[2].view};
  CHECK(first_not_finite<float>(views, {2}) == 3 && first_not_finite<float>({}) == 0);
  for (const index_t bad : {2, 1, 0}) {
    arrays[bad].data.back() = std::numeric_limits<float>::infinity();
    for (const int threads : {1, 2, 5}) CHECK(first_not_finite<float>(views, {threads}) == bad);
  }
}

TEST(row_norms_of_any_layout) {
  for (const Layout layout : {Layout::packed, Layout::transposed, Layout::backwards}) {
    const Array<float> array({2, 3, 1100, 3}, 1, layout);
    std::vector<double> norms(2 * 3 * 1100);
    const auto to = contiguous_view<double, 3>(norms.data(), {2, 3, 1100});
    row_norms<float>(array.view, to, {2});
    for (index_t b = 0; b < 2; ++b)
      for (index_t h = 0; h < 3; ++h)
        for (index_t i = 0; i < 1100; ++i) {
          double squares = 0;
          for (index_t c = 0; c < 3; ++c)
            squares += std::pow(static_cast<double>(array.view(b, h, i, c)), 2);
          CHECK_NEAR(to(b, h, i), std::sqrt(squares), 1e-6 * std::sqrt(squares));
        }
  }
  const std::vector<double> huge(3, std::numeric_limits<double>::max());
  double norm = 0;
  row_norms<double>(contiguous_view<const double, 4>(huge.data(), {1, 1, 1, 3}),
                    contiguous_view<double, 3>(&norm, {1, 1, 1}));
  CHECK(norm == std::numeric_limits<double>::max());
}

TEST(all_finite_looks_at_every_element_of_any_layout) {
  for (const Layout layout : {Layout::packed, Layout::transposed, Layout::backwards}) {
    Array<float> array({2, 3, 5, 7}, 1, layout);
    CHECK(all_finite<float>(array.view));
    for (std::size_t i = 1; i < array.data.size(); ++i) {
      const float before = array.data[i];
      array.data[i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                 : -std::numeric_limits<float>::infinity();
      CHECK(!all_finite<float>(array.view, {2}));
      array.data[i] = before;
    }
    array.data[0] = std::numeric_limits<float>::quiet_NaN();  // outside the view
    CHECK(all_finite<float>(array.view));
  }
  CHECK(all_finite<double>(View<double, 4>{}));
  Array<double> long_one({1, 1, 2500, 1}, 1);  // several tasks
  CHECK(all_finite<double>(long_one.view));
  long_one.data.back() = std::numeric_limits<double>::infinity();
  CHECK(!all_finite<double>(long_one.view));
}
