#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/backward.h"
#include "convbasis/error.h"
#include "cpu/backward_tiles.h"

using namespace convbasis;

namespace {

/// (batch, heads, n, dim) random numbers, packed or with the axes reversed in memory.
template <class T>
struct Array {
  Array(const std::array<index_t, 4>& shape, unsigned seed, bool transposed)
      : data(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3])) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (T& number : data) number = static_cast<T>(normal(random));
    view = contiguous_view<T, 4>(data.data(), shape);
    if (transposed)
      view.strides = {1, shape[0], shape[0] * shape[1], shape[0] * shape[1] * shape[2]};
  }
  std::vector<T> data;
  View<T, 4> view;
};

struct Sizes {
  index_t batch, heads, kv_heads, n_q, n_kv, dim, value_dim;
};

/// Inputs and gradients, which hold other numbers before a run.
template <class T>
struct Problem {
  explicit Problem(const Sizes& s, bool transposed = false)
      : query({s.batch, s.heads, s.n_q, s.dim}, 1, transposed),
        key({s.batch, s.kv_heads, s.n_kv, s.dim}, 2, transposed),
        value({s.batch, s.kv_heads, s.n_kv, s.value_dim}, 3, transposed),
        grad_output({s.batch, s.heads, s.n_q, s.value_dim}, 4, transposed),
        grad_query(query.view.shape, 5, transposed),
        grad_key(key.view.shape, 6, transposed),
        grad_value(value.view.shape, 7, transposed) {}

  void run(const AttentionOptions& options, std::span<const index_t> heads = {}, int threads = 2) {
    exact_attention_backward<T>(query.view, key.view, value.view, grad_output.view, grad_query.view,
                                grad_key.view, grad_value.view, options, heads, {threads});
  }
  [[nodiscard]] std::vector<std::vector<T>> gradients() const {
    return {grad_query.data, grad_key.data, grad_value.data};
  }

  Array<T> query, key, value, grad_output, grad_query, grad_key, grad_value;
};

/// The gradients in double, row by row. Key heads sum over the query heads that `counts` accepts.
template <class Counts>
Problem<double> plain(const Sizes& s, const AttentionOptions& options, bool transposed,
                      const Counts& counts) {
  Problem<double> p(s, transposed);
  for (auto* array : {&p.grad_query, &p.grad_key, &p.grad_value})
    std::fill(array->data.begin(), array->data.end(), 0.0);
  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(s.dim)));
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
  for (index_t b = 0; b < s.batch; ++b)
    for (index_t h = 0; h < s.heads; ++h)
      for (index_t i = 0; i < s.n_q && counts(b * s.heads + h); ++i) {
        const index_t g = h / (s.heads / s.kv_heads);
        const index_t seen = options.is_causal ? std::min(i + 1, s.n_kv) : s.n_kv;
        std::vector<double> weights(at(seen)), slopes(at(seen));
        double top = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0;
        for (index_t j = 0; j < seen; ++j) {
          for (index_t c = 0; c < s.dim; ++c)
            weights[at(j)] += scale * p.query.view(b, h, i, c) * p.key.view(b, g, j, c);
          for (index_t c = 0; c < s.value_dim; ++c)
            slopes[at(j)] += p.grad_output.view(b, h, i, c) * p.value.view(b, g, j, c);
          top = std::max(top, weights[at(j)]);
        }
        for (double& weight : weights) sum += weight = std::exp(weight - top);
        for (index_t j = 0; j < seen; ++j) delta += (weights[at(j)] /= sum) * slopes[at(j)];
        for (index_t j = 0; j < seen; ++j) {
          const double grad = scale * weights[at(j)] * (slopes[at(j)] - delta);
          for (index_t c = 0; c < s.dim; ++c) {
            p.grad_query.view(b, h, i, c) += grad * p.key.view(b, g, j, c);
            p.grad_key.view(b, g, j, c) += grad * p.query.view(b, h, i, c);
          }
          for (index_t c = 0; c < s.value_dim; ++c)
            p.grad_value.view(b, g, j, c) += weights[at(j)] * p.grad_output.view(b, h, i, c);
        }
      }
  return p;
}

template <class T>
void check_near(const std::vector<T>& got, const std::vector<double>& want) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error = std::hypot(error, static_cast<double>(got[i]) - want[i]);
    size = std::hypot(size, want[i]);
  }
  // Products of up to a few hundred random terms; one key alone has a slope of nothing.
  CHECK_NEAR(error, 0.0, 50 * static_cast<double>(std::numeric_limits<T>::epsilon()) * (size + 1));
}

template <class T>
void check_backward(const Sizes& sizes, bool is_causal, std::optional<double> scale = {},
                    bool transposed = false) {
  const AttentionOptions options{scale, is_causal};
  const Problem<double> want = plain(sizes, options, transposed, [](index_t) { return true; });
  Problem<T> problem(sizes, transposed);
  problem.run(options);
  check_near(problem.grad_query.data, want.grad_query.data);
  check_near(problem.grad_key.data, want.grad_key.data);
  check_near(problem.grad_value.data, want.grad_value.data);
}

}  // namespace

TEST(gradients_match_plain_loops) {
  for (const bool is_causal : {false, true}) {
    for (const index_t n : {1, 2, 3, 7, 16, 17, 63, 64, 65, 127, 128, 129, 257, 530}) {
      check_backward<float>({1, 1, 1, n, n, 8, 4}, is_causal);
      check_backward<double>({1, 1, 1, n, n, 5, 3}, is_causal, 0.3);
    }
    check_backward<float>({2, 3, 3, 9, 9, 1, 1}, is_causal, -2.0);  // a negative scale
    check_backward<double>({2, 3, 3, 9, 9, 64, 1}, is_causal, 0.0);
    check_backward<float>({1, 1, 1, 70, 150, 130, 300}, is_causal);  // tiles of few rows
  }
}

TEST(gradients_with_other_numbers_of_queries_and_keys) {
  for (const bool is_causal : {false, true})
    for (const auto& [n_q, n_kv] :
         std::vector<std::pair<index_t, index_t>>{{1, 300}, {300, 1}, {600, 130}, {130, 600}})
      check_backward<double>({1, 2, 1, n_q, n_kv, 4, 3}, is_causal);
}

TEST(gradients_by_shared_key_heads_are_sums) {
  for (const index_t kv_heads : {1, 2, 3, 6})
    check_backward<double>({2, 6, kv_heads, 70, 90, 4, 3}, true);
}

TEST(gradients_take_any_strides) {
  for (const bool is_causal : {false, true})
    check_backward<float>({2, 4, 2, 33, 140, 6, 5}, is_causal, {}, true);
}

TEST(what_nothing_is_summed_for_is_zero) {
  for (const Sizes& sizes : {Sizes{1, 2, 1, 5, 0, 4, 3}, Sizes{1, 2, 1, 0, 5, 4, 3}}) {
    Problem<float> problem(sizes);
    problem.run({});
    for (const auto& gradient : problem.gradients())
      CHECK(std::all_of(gradient.begin(), gradient.end(), [](float x) { return x == 0; }));
  }
}

TEST(listed_heads_alone_are_computed_and_summed) {
  const Sizes sizes{2, 4, 2, 9, 9, 4, 3};
  const std::vector<index_t> listed{7, 0, 6, 7};
  const Problem<double> before(sizes), want = plain(sizes, {}, false, [&](index_t head) {
                                         return head == 0 || head == 6 || head == 7;
                                       });
  Problem<double> got(sizes);
  got.run({}, listed);
  const auto check = [](const std::vector<double>& numbers, const std::vector<double>& right,
                        const std::vector<double>& old, const std::vector<index_t>& computed) {
    const auto size = static_cast<std::ptrdiff_t>(numbers.size());
    const auto heads = static_cast<std::ptrdiff_t>(computed.size());
    for (std::ptrdiff_t h = 0; h < heads; ++h)
      for (std::ptrdiff_t i = h * size / heads; i < (h + 1) * size / heads; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const bool is_computed = computed[static_cast<std::size_t>(h)] != 0;
        CHECK_NEAR(numbers[at], is_computed ? right[at] : old[at], is_computed ? 1e-13 : 0.0);
      }
  };
  check(got.grad_query.data, want.grad_query.data, before.grad_query.data,
        {1, 0, 0, 0, 0, 0, 1, 1});
  check(got.grad_key.data, want.grad_key.data, before.grad_key.data, {1, 0, 0, 1});
  check(got.grad_value.data, want.grad_value.data, before.grad_value.data, {1, 0, 0, 1});
}

TEST(gradients_are_threaded_bitwise) {
  for (const bool is_causal : {false, true}) {
    for (const Sizes& sizes : {Sizes{1, 1, 1, 1100, 1100, 8, 4}, Sizes{1, 2, 1, 600, 1300, 8, 4},
                               Sizes{2, 8, 4, 300, 300, 8, 4}}) {
      Problem<float> problem(sizes);
      problem.run({{}, is_causal}, {}, 1);
      const auto want = problem.gradients();
      for (const int threads : {2, 3, 5}) {
        problem.run({{}, is_causal}, {}, threads);
        CHECK(problem.gradients() == want);
      }
    }
  }
}

TEST(a_backward_pass_refuses_what_does_not_fit) {
  Problem<float> problem({1, 2, 1, 3, 3, 4, 3});
  for (auto* view : {&problem.grad_output.view, &problem.grad_query.view, &problem.grad_key.view,
                     &problem.grad_value.view}) {
    ++view->shape[2];
    CHECK_THROWS(problem.run({}), InvalidArgument, "[exact_attention_backward] grad_");
    --view->shape[2];
  }
  CHECK_THROWS(problem.run({}, std::vector<index_t>{2}), InvalidArgument, "heads holds 2");
  for (float& number : problem.query.data) number *= 1e30F;
  for (float& number : problem.key.data) number *= 1e30F;
  CHECK_THROWS(problem.run({}), InvalidArgument, "overflow");
}

TEST(a_backward_pass_can_be_stopped) {
  struct Stop final : Interrupt {
    bool requested() override { return true; }
  } stop;
  Problem<float> problem({1, 1, 1, 3000, 3000, 8, 4});
  CHECK_THROWS(exact_attention_backward<float>(problem.query.view, problem.key.view,
                                               problem.value.view, problem.grad_output.view,
                                               problem.grad_query.view, problem.grad_key.view,
                                               problem.grad_value.view, {}, {}, {2, &stop}),
               Interrupted, "interrupted");
}

TEST(backward_tiles_take_rows_in_any_order) {
  constexpr index_t kKeys = 200, kDim = 4, kChannels = 3;
  const std::vector<index_t> rows{150, 3, 199, 0, 127, 128};
  const auto count = static_cast<index_t>(rows.size());
  const Problem<double> problem({1, 1, 1, kKeys, kKeys, kDim, kChannels});
  const auto matrix = [](const Array<double>& array) {
    return Rows<const double>{array.data.data(), array.view.shape[3]};
  };
  const Panels<double> keys(matrix(problem.key), kKeys, kDim, {}),
      values(matrix(problem.value), kKeys, kChannels, {});
  DotScores<double> scores(
      contiguous_view<const double, 2>(problem.query.data.data(), {kKeys, kDim}), keys, kDim, 0.5);
  const VisibleKeys visible(true, kKeys);
  BackwardTiles<double> tiles(matrix(problem.value), values, kChannels, visible, "test");
  std::vector<double> grad_output, lse(rows.size()), delta(rows.size());
  for (const index_t row : rows)
    for (index_t c = 0; c < kChannels; ++c)
      grad_output.push_back(problem.grad_output.view(0, 0, row, c));
  const BackwardRows<double> listed{
      rows, {grad_output.data(), kChannels}, lse.data(), delta.data()};
  tiles.forward(scores, listed);
  std::vector<double> grad_value(kKeys * kChannels), sums(rows.size()), sizes(rows.size());
  for (const index_t first : {index_t{0}, kPanel}) {
    const index_t last = std::min(first + kPanel, kKeys);
    const Rows<const double> grad =
        tiles.backward(scores, first, last, listed, {grad_value.data(), kChannels});
    for (index_t r = 0; r < count; ++r)
      for (index_t j = first; j < last; ++j) {
        const auto at = static_cast<std::size_t>(r);
        if (j > rows[at]) CHECK(grad.row(r)[j - first] == 0);
        sums[at] += grad.row(r)[j - first];
        sizes[at] += std::abs(grad.row(r)[j - first]);
      }
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {  // a constant in the logits changes nothing
    CHECK_NEAR(sums[r], 0.0, 1e-14);
    CHECK(sizes[r] > 1e-3 || rows[r] == 0);
  }
  for (index_t c = 0; c < kChannels; ++c) {  // weights of a row sum to 1
    double got = 0, want = 0;
    for (index_t j = 0; j < kKeys; ++j)
      got += grad_value[static_cast<std::size_t>(j * kChannels + c)];
    for (const index_t row : rows) want += problem.grad_output.view(0, 0, row, c);
    CHECK_NEAR(got, want, 1e-13);
  }
}
