#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "convbasis/attention.h"
#include "convbasis/backward.h"
#include "convbasis/error.h"
#include "masks.h"

using namespace convbasis;

namespace {

constexpr index_t kDim = 4;

struct Array {
  Array(index_t rows, unsigned seed) : data(static_cast<std::size_t>(rows * kDim)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (double& number : data) number = normal(random);
    view = contiguous_view<double, 4>(data.data(), {1, 1, rows, kDim});
  }
  [[nodiscard]] double dot(index_t i, const Array& other, index_t j) const {
    double sum = 0;
    for (index_t c = 0; c < kDim; ++c) sum += view(0, 0, i, c) * other.view(0, 0, j, c);
    return sum;
  }
  void add(index_t i, double factor, const Array& other, index_t j) const {
    for (index_t c = 0; c < kDim; ++c) view(0, 0, i, c) += factor * other.view(0, 0, j, c);
  }
  std::vector<double> data;
  View<double, 4> view;
};

/// One head: inputs, what comes of them, and that once more, row by row from the matrix.
struct Problem {
  Problem(index_t n_q, index_t n_kv)
      : query(n_q, 1),
        key(n_kv, 2),
        value(n_kv, 3),
        grad(n_q, 4),
        out(n_q, 5),
        grad_query(n_q, 6),
        grad_key(n_kv, 7),
        grad_value(n_kv, 8),
        lse(static_cast<std::size_t>(n_q)) {}

  void run(const AttentionOptions& options, int threads = 2) {
    const View<double, 3> sums = contiguous_view<double, 3>(lse.data(), {1, 1, out.view.shape[2]});
    exact_attention<double>(query.view, key.view, value.view, out.view, sums, options, {},
                            {threads});
    exact_attention_backward<double>(query.view, key.view, value.view, grad.view, grad_query.view,
                                     grad_key.view, grad_value.view, options, {}, {threads});
  }
  void plain(const sample::Bools& dense, bool is_causal) {
    for (Array* array : {&out, &grad_query, &grad_key, &grad_value})
      std::fill(array->data.begin(), array->data.end(), 0.0);
    const auto [n_q, n_kv] = dense.shape;
    const double scale = 1 / std::sqrt(static_cast<double>(kDim));
    for (index_t i = 0; i < n_q; ++i) {
      double sum = 0, delta = 0;
      std::vector<double> weights(static_cast<std::size_t>(n_kv));
      for (index_t j = 0; j < n_kv; ++j)
        if (dense.at(i, j) && (!is_causal || j <= i))
          sum += weights[static_cast<std::size_t>(j)] = std::exp(scale * query.dot(i, key, j));
      lse[static_cast<std::size_t>(i)] = std::log(sum);
      for (index_t j = 0; j < n_kv && sum > 0; ++j) {
        double& weight = weights[static_cast<std::size_t>(j)];
        weight /= sum;
        out.add(i, weight, value, j);
        delta += weight * grad.dot(i, value, j);
      }
      for (index_t j = 0; j < n_kv; ++j) {
        const double weight = weights[static_cast<std::size_t>(j)];
        const double slope = scale * weight * (grad.dot(i, value, j) - delta);
        grad_query.add(i, slope, key, j);
        grad_key.add(j, slope, query, i);
        grad_value.add(j, weight, grad, i);
      }
    }
  }

  Array query, key, value, grad, out, grad_query, grad_key, grad_value;
  std::vector<double> lse;
};

double distance(const std::vector<double>& one, const std::vector<double>& other) {
  double worst = 0;
  for (std::size_t i = 0; i < one.size(); ++i)
    if (one[i] != other[i]) worst = std::max(worst, std::abs(one[i] - other[i]));
  return worst;
}

}  // namespace

TEST(masked_attention_and_its_gradients) {
  constexpr std::array<std::array<index_t, 2>, 6> kSizes{
      {{1, 1}, {2, 63}, {65, 64}, {127, 130}, {300, 128}, {100, 600}}};
  for (const auto [n_q, n_kv] : kSizes) {
    const sample::Cases cases(n_q, n_kv, 3);
    for (const sample::Case& one : cases.all())
      for (const bool is_causal : {false, true}) {
        Problem got(n_q, n_kv), want(n_q, n_kv);
        got.run({{}, is_causal, one.mask});
        want.plain(one.dense, is_causal);
        // Sums of up to some hundred terms of about 1.
        CHECK_NEAR(distance(got.out.data, want.out.data), 0.0, 1e-13);
        CHECK_NEAR(distance(got.lse, want.lse), 0.0, 1e-13);
        CHECK_NEAR(distance(got.grad_query.data, want.grad_query.data), 0.0, 1e-12);
        CHECK_NEAR(distance(got.grad_key.data, want.grad_key.data), 0.0, 1e-12);
        CHECK_NEAR(distance(got.grad_value.data, want.grad_value.data), 0.0, 1e-12);
      }
  }
}

TEST(threads_leave_masked_results_alone) {
  constexpr index_t kN = 520;
  const sample::Cases cases(kN, kN, 4);
  for (const sample::Case& one : cases.all()) {
    Problem alone(kN, kN), many(kN, kN);
    alone.run({{}, false, one.mask}, 1);
    many.run({{}, false, one.mask}, 4);
    CHECK(alone.out.data == many.out.data);
    CHECK(alone.grad_query.data == many.grad_query.data);
    CHECK(alone.grad_key.data == many.grad_key.data);
    CHECK(alone.grad_value.data == many.grad_value.data);
  }
}

TEST(masks_that_do_not_fit_leave_the_output_alone) {
  Problem problem(3, 4);
  const std::vector<double> before = problem.out.data, grad_before = problem.grad_key.data;
  const std::vector<index_t> short_start(2), first{0, 0}, offsets(3);
  const masks::KeyLists none{{}, offsets};
  CHECK_THROWS(problem.run({{}, false, masks::RowWindow{short_start, short_start}}),
               InvalidArgument, "[exact_attention] mask.start has the wrong length; expected 3");
  CHECK_THROWS(problem.run({{}, false, masks::RowChange{first, none, none}}), InvalidArgument,
               "[exact_attention] mask.added changes a key for row 0 that is seen there");
  const auto backward = [&](const Mask& mask) {
    exact_attention_backward<double>(
        problem.query.view, problem.key.view, problem.value.view, problem.grad.view,
        problem.grad_query.view, problem.grad_key.view, problem.grad_value.view, {{}, false, mask});
  };
  CHECK_THROWS(backward(masks::SlidingWindow{0}), InvalidArgument,
               "[exact_attention_backward] mask.size is too small; expected at least 1; got 0");
  CHECK(problem.out.data == before);
  CHECK(problem.grad_key.data == grad_before);
}
