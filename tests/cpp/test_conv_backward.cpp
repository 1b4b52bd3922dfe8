#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "convbasis/backward.h"
#include "convbasis/cost_model.h"
#include "convbasis/error.h"
#include "strips.h"

// Gradients through strips: what they are added to, lists of heads, schedules, threads. Their
// values are held against the oracle from Python.

using namespace convbasis;

namespace {

constexpr index_t kBatch = 2, kHeads = 4, kKvHeads = 2, kDim = 5, kValueDim = 3, kStrips = 3;
constexpr CostModel kModel{0.1, 0.05, 0.01, 0.04, 4.0};

/// Puts the model of the process back.
template <class T>
struct FixedModel {
  explicit FixedModel(const CostModel& model) { set_cost_model<T>(model); }
  ~FixedModel() { set_cost_model<T>(before); }
  FixedModel(const FixedModel&) = delete;
  FixedModel& operator=(const FixedModel&) = delete;
  CostModel before = cost_model<T>();
};

template <class T>
struct Array {
  Array(const std::array<index_t, 4>& shape, unsigned seed)
      : data(random_numbers<T>(shape[0] * shape[1] * shape[2] * shape[3], seed)),
        view(contiguous_view<T, 4>(data.data(), shape)) {}
  std::vector<T> data;
  View<T, 4> view;
};

/// Random strips, arrays that have nothing to do with them, and gradients that hold other numbers.
template <class T>
struct Problem {
  explicit Problem(index_t n, bool is_causal = true)
      : rows(n),
        query({kBatch, kHeads, n, kDim}, 1),
        key({kBatch, kKvHeads, n, kDim}, 2),
        value({kBatch, kKvHeads, n, kValueDim}, 3),
        grad_output({kBatch, kHeads, n, kValueDim}, 4),
        kernels({kBatch, kHeads, kStrips, n}, 5),
        above({kBatch, kHeads, kStrips, n}, 6),
        grad_query(query.view.shape, 7),
        grad_key(key.view.shape, 8),
        grad_value(value.view.shape, 9),
        has_upper(!is_causal) {
    for (index_t head = 0; head < kBatch * kHeads; ++head) {
      for (const index_t start : {index_t{0}, n / 3, n / 2}) starts.push_back(start);
      counts.push_back(kStrips);
    }
  }
  [[nodiscard]] BasisView<T> basis(const Array<T>& of) const {
    return {contiguous_view<const index_t, 3>(starts.data(), {kBatch, kHeads, kStrips}),
            contiguous_view<const index_t, 2>(counts.data(), {kBatch, kHeads}), of.view, rows};
  }
  BackwardReport run(Gradient gradient, std::span<const index_t> heads = {},
                     const Exec& exec = {2}) {
    const BasisView<T> lower = basis(kernels), upper = basis(above);
    return conv_attention_backward<T>(lower, has_upper ? &upper : nullptr, query.view, key.view,
                                      value.view, grad_output.view, grad_query.view, grad_key.view,
                                      grad_value.view, 0.25, gradient, heads, exec);
  }
  void fill(T number) {
    for (Array<T>* array : {&grad_query, &grad_key, &grad_value})
      std::fill(array->data.begin(), array->data.end(), number);
  }
  [[nodiscard]] std::vector<std::vector<T>> gradients() const {
    return {grad_query.data, grad_key.data, grad_value.data};
  }

  index_t rows;
  Array<T> query, key, value, grad_output, kernels, above, grad_query, grad_key, grad_value;
  bool has_upper;
  std::vector<index_t> starts, counts;
};

/// Part number `part` of `parts` equal ones.
template <class T>
std::vector<T> slice(const std::vector<T>& numbers, index_t part, index_t parts) {
  const auto size = static_cast<std::ptrdiff_t>(numbers.size()) / parts;
  return {numbers.begin() + part * size, numbers.begin() + (part + 1) * size};
}

void check_close(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  CHECK_NEAR(std::sqrt(error / size), 0.0, 1e-12);
}

constexpr Gradient kBoth[] = {Gradient::basis, Gradient::attention};

}  // namespace

TEST(gradients_by_keys_and_values_are_added_those_by_queries_written) {
  for (const Gradient gradient : kBoth) {
    Problem<double> problem(90);
    problem.fill(0);
    problem.run(gradient);
    const auto once = problem.gradients();
    problem.fill(2);
    problem.run(gradient);
    CHECK(problem.grad_query.data == once[0]);
    for (const auto& [twice, alone] : {std::pair{&problem.grad_key.data, &once[1]},
                                       std::pair{&problem.grad_value.data, &once[2]}}) {
      for (std::size_t i = 0; i < alone->size(); ++i)
        CHECK_NEAR((*twice)[i], (*alone)[i] + 2, 1e-13);
    }
  }
}

TEST(gradients_through_strips_of_listed_heads) {
  const std::vector<index_t> listed{7, 0, 6, 7};  // batch * kHeads + head, one of them twice
  for (const Gradient gradient : kBoth) {
    Problem<double> problem(90, false), alone(90, false);
    const auto before = problem.gradients();
    const BackwardReport report = problem.run(gradient, listed);
    CHECK(report.rows_exact.size() == kBatch * kHeads);
    for (index_t head = 0; head < kBatch * kHeads; ++head) {
      const bool is_listed = std::find(listed.begin(), listed.end(), head) != listed.end();
      alone.run(gradient, std::vector<index_t>{head});
      const auto& right = is_listed ? alone.grad_query.data : before[0];
      CHECK(slice(problem.grad_query.data, head, kBatch * kHeads) ==
            slice(right, head, kBatch * kHeads));
    }
    alone.grad_key.data = before[1];
    alone.grad_value.data = before[2];
    for (const index_t head : {0, 6, 7}) alone.run(gradient, std::vector<index_t>{head});
    CHECK(problem.grad_key.data == alone.grad_key.data);
    CHECK(problem.grad_value.data == alone.grad_value.data);
    for (const index_t group : {1, 2})
      CHECK(slice(problem.grad_key.data, group, kBatch * kKvHeads) ==
            slice(before[1], group, kBatch * kKvHeads));
    CHECK(problem.grad_key.data != before[1]);
  }
}

TEST(gradients_through_strips_do_not_depend_on_the_schedule) {
  constexpr index_t kRows = 1100;
  for (const bool is_causal : {true, false}) {
    for (const Gradient gradient : kBoth) {
      std::vector<std::vector<double>> want;
      for (const double direct : {1e-9, 0.01, 1.0, 1e9}) {  // from no level to short blocks
        for (const double exact : {1e-9, 1e9}) {            // all rows near, and blocks of few
          CostModel model = kModel;
          model.direct = direct;
          model.exact = exact;
          const FixedModel<double> fixed(model);
          Problem<double> problem(kRows, is_causal);
          problem.fill(0);
          problem.run(gradient);
          if (want.empty()) want = problem.gradients();
          const auto got = problem.gradients();
          for (std::size_t i = 0; i < want.size(); ++i) check_close(got[i], want[i]);
        }
      }
    }
  }
}

TEST(gradients_through_strips_are_threaded_bitwise) {
  const FixedModel<float> fixed(kModel);
  for (const bool is_causal : {true, false}) {
    for (const Gradient gradient : kBoth) {
      Problem<float> problem(700, is_causal);
      // One head, then more than there are threads; rows with sums of all sizes.
      for (float& logit : problem.kernels.data) logit *= 8;
      for (const std::vector<index_t>& heads : {std::vector<index_t>{3}, std::vector<index_t>{}}) {
        problem.fill(0);
        const BackwardReport one = problem.run(gradient, heads, {1});
        CHECK(one.rows_exact[3] > 0);
        const auto want = problem.gradients();
        for (const int threads : {2, 3, 5}) {
          problem.fill(0);
          CHECK(problem.run(gradient, heads, {threads}).rows_exact == one.rows_exact);
          CHECK(problem.gradients() == want);
        }
      }
    }
  }
}

TEST(a_backward_pass_through_strips_refuses_what_does_not_fit) {
  Problem<float> problem(12);
  const auto refused = [&](const char* message) {
    CHECK_THROWS(problem.run(Gradient::basis), InvalidArgument, message);
  };
  for (const auto& [view, name] :
       {std::pair{&problem.query.view, "query"}, std::pair{&problem.key.view, "key"},
        std::pair{&problem.grad_output.view, "grad_output"},
        std::pair{&problem.grad_query.view, "grad_query"},
        std::pair{&problem.grad_key.view, "grad_key"},
        std::pair{&problem.grad_value.view, "grad_value"}}) {
    for (const std::size_t axis : {0U, 1U, 2U, 3U}) {
      if (view == &problem.query.view && axis == 3) continue;  // sets the width of the others
      ++view->shape[axis];
      refused(("[conv_attention_backward] " + std::string(name) + " has shape").c_str());
      --view->shape[axis];
    }
  }
  ++problem.query.view.shape[3];
  refused("[conv_attention_backward] key has shape");
  --problem.query.view.shape[3];
  problem.starts[1] = 0;
  refused("[conv_attention_backward] starts holds 0");
  problem.starts[1] = 4;
  CHECK_THROWS(problem.run(Gradient::basis, std::vector<index_t>{kBatch * kHeads}), InvalidArgument,
               "heads holds 8");
}

TEST(a_backward_pass_through_strips_can_be_stopped) {
  struct Stop final : Interrupt {
    bool requested() override { return true; }
  } stop;
  for (const Gradient gradient : kBoth) {
    Problem<float> problem(4000);
    CHECK_THROWS(problem.run(gradient, {}, {2, &stop}), Interrupted, "interrupted");
  }
}

TEST(no_rows_leave_nothing_to_compute) {
  for (const Gradient gradient : kBoth) {
    Problem<float> problem(0);
    std::fill(problem.counts.begin(), problem.counts.end(), 0);
    CHECK(problem.run(gradient).rows_exact == std::vector<index_t>(kBatch * kHeads, 0));
  }
}
