#include <vector>

#include "check.h"
#include "convbasis/convbasis.h"

// Each wrong argument is named, with what was got and what was expected, before anything is
// written.

using namespace convbasis;

namespace {

constexpr index_t kRows = 6, kDim = 3;

/// Numbers enough for every array of these tests.
std::vector<float> storage(1000, 1.F);

template <int N>
View<float, N> array(const std::array<index_t, N>& shape) {
  return contiguous_view<float, N>(storage.data(), shape);
}

/// A valid basis of two heads, to be spoilt by each test; kernels (1, 2, 2, kRows).
struct Basis {
  std::vector<index_t> starts{0, 2, 1, kRows}, counts{2, 1};
  std::array<index_t, 3> starts_shape{1, 2, 2};
  std::array<index_t, 2> counts_shape{1, 2};
  index_t num_columns = kRows;
  [[nodiscard]] BasisView<float> view() const {
    return {contiguous_view<const index_t, 3>(starts.data(), starts_shape),
            contiguous_view<const index_t, 2>(counts.data(), counts_shape),
            array<4>({1, 2, 2, kRows}), num_columns};
  }
};

void conv(const Basis& lower, const Basis* upper = nullptr, index_t value_rows = kRows,
          index_t value_heads = 1, index_t out_rows = kRows, index_t lse_rows = kRows,
          const std::vector<index_t>& heads = {}) {
  const BasisView<float> above = upper != nullptr ? upper->view() : BasisView<float>{};
  conv_attention<float>(lower.view(), upper != nullptr ? &above : nullptr,
                        array<4>({1, value_heads, value_rows, kDim}),
                        array<4>({1, 2, out_rows, kDim}), array<3>({1, 2, lse_rows}), heads);
}

void exact(const std::array<index_t, 4>& query, const std::array<index_t, 4>& key,
           const std::array<index_t, 4>& value, const std::array<index_t, 4>& out,
           const std::array<index_t, 3>& lse, const std::vector<index_t>& heads = {}) {
  exact_attention<float>(array<4>(query), array<4>(key), array<4>(value), array<4>(out),
                         array<3>(lse), {}, heads);
}

/// Every function that takes a basis checks it in the same words, under its own name.
void check_basis_message(const Basis& basis, const char* message) {
  const auto prefixed = [&](const char* function) {
    return "[" + std::string(function) + "] " + message;
  };
  CHECK_THROWS(conv(basis), InvalidArgument, prefixed("conv_attention"));
  CHECK_THROWS(row_sums<float>(basis.view(), array<3>({1, 2, kRows})), InvalidArgument,
               prefixed("row_sums"));
  CHECK_THROWS(conv_matmul<float>(basis.view(), array<4>({1, 2, kRows, kDim}),
                                  array<4>({1, 2, kRows, kDim})),
               InvalidArgument, prefixed("conv_matmul"));
}

}  // namespace

TEST(valid_arguments_are_accepted) {
  const Basis basis;
  conv(basis);
  conv(basis, &basis);
  exact({1, 2, 4, kDim}, {1, 1, 5, kDim}, {1, 1, 5, 2}, {1, 2, 4, 2}, {1, 2, 4}, {1});
  row_sums<float>(basis.view(), array<3>({1, 2, kRows}));
}

TEST(a_wrong_basis_is_named) {
  Basis basis;
  basis.starts_shape = {1, 2, 1};
  check_basis_message(basis, "starts has shape (1, 2, 1); expected (1, 2, 2) to match kernels");
  basis = {};
  basis.counts_shape = {2, 1};
  check_basis_message(basis, "num_bases has shape (2, 1); expected (1, 2) to match kernels");
  basis = {};
  basis.num_columns = kRows + 1;
  check_basis_message(basis, "num_columns is 7; expected 0 to 6");
  basis.num_columns = -1;
  check_basis_message(basis, "num_columns is -1; expected 0 to 6");
  basis = {};
  basis.counts = {2, 3};
  check_basis_message(basis, "num_bases holds 3; expected 0 to 2");
  basis.counts = {-1, 1};
  check_basis_message(basis, "num_bases holds -1; expected 0 to 2");
  basis = {};
  basis.starts = {0, 0, 1, 6};
  check_basis_message(basis, "starts holds 0 at strip 1; expected increasing starts below 6");
  basis.starts = {3, 2, 1, 6};
  check_basis_message(basis, "starts holds 2 at strip 1; expected increasing starts below 6");
  basis.starts = {0, 6, 1, 6};
  check_basis_message(basis, "starts holds 6 at strip 1; expected increasing starts below 6");
  basis.starts = {-1, 2, 1, 6};
  check_basis_message(basis, "starts holds -1 at strip 0; expected increasing starts below 6");
  basis.starts = {0, 2, 1, -99};  // padding is not looked at
  conv(basis);
}

TEST(kernels_have_a_contiguous_last_axis) {
  const Basis basis;
  BasisView<float> view = basis.view();
  view.kernels.strides = {24, 12, 1, 2};
  CHECK_THROWS(row_sums<float>(view, array<3>({1, 2, kRows})), InvalidArgument,
               "kernels has stride 2 along lags; expected a contiguous last axis");
}

TEST(wrong_shapes_of_conv_attention_are_named) {
  const Basis basis;
  CHECK_THROWS(conv(basis, nullptr, 5), InvalidArgument,
               "[conv_attention] value has shape (1, 1, 5, 3); expected (1, 1, 6, 3)");
  CHECK_THROWS(conv(basis, nullptr, kRows, 3), InvalidArgument,
               "3 heads; expected a divisor of the 2 query heads");
  CHECK_THROWS(conv(basis, nullptr, kRows, 1, 5), InvalidArgument,
               "[conv_attention] out has shape (1, 2, 5, 3); expected (1, 2, 6, 3)");
  CHECK_THROWS(conv(basis, nullptr, kRows, 1, kRows, 7), InvalidArgument,
               "[conv_attention] lse has shape (1, 2, 7); expected (1, 2, 6)");
  for (const index_t head : {-1, 2})
    CHECK_THROWS(
        conv(basis, nullptr, kRows, 1, kRows, kRows, {0, head}), InvalidArgument,
        "[conv_attention] heads holds " + std::to_string(head) + "; expected 0 <= head < 2");
}

TEST(the_upper_basis_has_to_fit_the_lower) {
  Basis lower, upper;
  upper.num_columns = 5;
  CHECK_THROWS(conv(lower, &upper), InvalidArgument,
               "num_columns is 6 and 5; expected n = 6 of both without a causal mask");
  lower.num_columns = 5;
  CHECK_THROWS(conv(lower, &upper, 5), InvalidArgument, "num_columns is 5 and 5");
  lower = upper = {};
  upper.starts = {4, 3, 1, 6};
  CHECK_THROWS(conv(lower, &upper), InvalidArgument, "starts holds 3 at strip 1");
  const BasisView<float> smaller{contiguous_view<const index_t, 3>(lower.starts.data(), {1, 1, 2}),
                                 contiguous_view<const index_t, 2>(lower.counts.data(), {1, 1}),
                                 array<4>({1, 1, 2, kRows}), kRows};
  CHECK_THROWS(conv_attention<float>(lower.view(), &smaller, array<4>({1, 1, kRows, kDim}),
                                     array<4>({1, 2, kRows, kDim}), {}),
               InvalidArgument, "upper.kernels has shape (1, 1, 2, 6); expected (1, 2, 2, 6)");
}

TEST(wrong_shapes_of_matrix_products_are_named) {
  Basis basis;
  basis.num_columns = 4;
  const auto multiply = [&](index_t x_rows, index_t y_rows, index_t y_channels, bool transpose) {
    conv_matmul<float>(basis.view(), array<4>({1, 2, x_rows, kDim}),
                       array<4>({1, 2, y_rows, y_channels}), transpose);
  };
  multiply(4, kRows, kDim, false);
  multiply(kRows, 4, kDim, true);
  CHECK_THROWS(multiply(kRows, kRows, kDim, false), InvalidArgument,
               "[conv_matmul] x has shape (1, 2, 6, 3); expected (1, 2, 4, 3)");
  CHECK_THROWS(multiply(4, 4, kDim, true), InvalidArgument,
               "[conv_matmul] x has shape (1, 2, 4, 3); expected (1, 2, 6, 3)");
  CHECK_THROWS(multiply(4, 4, kDim, false), InvalidArgument,
               "[conv_matmul] y has shape (1, 2, 4, 3); expected (1, 2, 6, 3)");
  CHECK_THROWS(multiply(4, kRows, 2, false), InvalidArgument, "[conv_matmul] y has shape");
  CHECK_THROWS(row_sums<float>(basis.view(), array<3>({1, 2, 5})), InvalidArgument,
               "[row_sums] sums has shape (1, 2, 5); expected (1, 2, 6) to match the basis");
}

TEST(wrong_shapes_of_exact_attention_are_named) {
  const std::array<index_t, 4> q{1, 2, 4, kDim}, k{1, 1, 5, kDim}, v{1, 1, 5, 2}, out{1, 2, 4, 2};
  const std::array<index_t, 3> lse{1, 2, 4};
  CHECK_THROWS(exact({1, 2, 4, 0}, {1, 1, 5, 0}, v, out, lse), InvalidArgument,
               "[exact_attention] query has head_dim 0; expected at least 1");
  CHECK_THROWS(exact(q, {1, 3, 5, kDim}, v, out, lse), InvalidArgument,
               "[exact_attention] key has 3 heads; expected a divisor of the 2 query heads");
  CHECK_THROWS(exact(q, {1, 0, 5, kDim}, v, out, lse), InvalidArgument, "key has 0 heads");
  CHECK_THROWS(
      exact(q, {1, 1, 5, 4}, v, out, lse), InvalidArgument,
      "[exact_attention] key has shape (1, 1, 5, 4); expected (1, 1, 5, 3) to match query");
  CHECK_THROWS(exact(q, {2, 1, 5, kDim}, v, out, lse), InvalidArgument,
               "key has shape (2, 1, 5, 3)");
  CHECK_THROWS(
      exact(q, k, {1, 1, 4, 2}, out, lse), InvalidArgument,
      "[exact_attention] value has shape (1, 1, 4, 2); expected (1, 1, 5, 2) to match key");
  CHECK_THROWS(exact(q, k, v, {1, 2, 5, 2}, lse), InvalidArgument,
               "[exact_attention] out has shape (1, 2, 5, 2); expected (1, 2, 4, 2)");
  CHECK_THROWS(exact(q, k, v, out, {1, 2, 5}), InvalidArgument,
               "[exact_attention] lse has shape (1, 2, 5); expected (1, 2, 4)");
  CHECK_THROWS(exact(q, k, v, out, lse, {1, 2}), InvalidArgument,
               "[exact_attention] heads holds 2; expected 0 <= head < 2");
}

TEST(wrong_queries_and_keys_of_recovery_are_named) {
  const auto recover = [](const std::array<index_t, 4>& query, const std::array<index_t, 4>& key) {
    return recover_basis<float>(array<4>(query), array<4>(key), 1.0);
  };
  CHECK_THROWS(recover({1, 2, 4, 0}, {1, 2, 4, 0}), InvalidArgument,
               "[recover_basis] query has head_dim 0");
  CHECK_THROWS(recover({1, 2, 4, 3}, {1, 4, 4, 3}), InvalidArgument,
               "[recover_basis] key has 4 heads; expected a divisor of the 2 query heads");
  CHECK_THROWS(recover({1, 2, 4, 3}, {1, 2, 4, 2}), InvalidArgument,
               "[recover_basis] key has shape (1, 2, 4, 2); expected (1, 2, 4, 3)");
}

TEST(starts_past_the_keys_are_refused) {
  // Five queries, two keys: a strip that starts at column 3 has no key to take its kernel from.
  const std::vector<index_t> starts{3}, counts{1};
  CHECK_THROWS(
      recover_kernels<float>(array<4>({1, 1, 5, 3}), array<4>({1, 1, 2, 3}),
                             contiguous_view<const index_t, 3>(starts.data(), {1, 1, 1}),
                             contiguous_view<const index_t, 2>(counts.data(), {1, 1}), 1.0,
                             contiguous_view<float, 4>(storage.data() + 500, {1, 1, 1, 5})),
      InvalidArgument, "[recover_kernels] starts holds 3");
}

TEST(nothing_is_written_when_a_listed_row_is_wrong) {
  // The wrong row is in the last head: the heads before it must not have been computed yet.
  const std::vector<index_t> rows{0, 1, 2, kRows};
  const auto listed = contiguous_view<const index_t, 3>(rows.data(), {1, 2, 2});
  std::vector<float> out(2 * 2 * kDim, 77.F);
  const std::vector<float> before = out;
  const auto to = contiguous_view<float, 4>(out.data(), {1, 2, 2, kDim});
  const auto qkv = array<4>({1, 2, kRows, kDim});
  CHECK_THROWS(attention_rows<float>(qkv, qkv, qkv, listed, to, {}, {}, {}, {1}), InvalidArgument,
               "[attention_rows] rows holds 6; expected 0 <= row < 6");
  CHECK(out == before);
  const Basis basis;
  CHECK_THROWS(conv_attention_rows<float>(basis.view(), nullptr, qkv, listed, to, {}, {1}),
               InvalidArgument, "[conv_attention_rows] rows holds 6; expected 0 <= row < 6");
  CHECK(out == before);
  std::vector<double> deviation(2, 77.0);
  CHECK_THROWS(logit_deviation<float>(qkv, qkv, 1.0, basis.view(), listed,
                                      contiguous_view<double, 2>(deviation.data(), {1, 2}), {1}),
               InvalidArgument, "rows holds 6; expected 0 <= row < 6");
  CHECK((deviation == std::vector<double>{77.0, 77.0}));
}

TEST(errors_are_the_standard_kinds) {
  CHECK_THROWS(throw InvalidArgument("a"), std::invalid_argument, "a");
  CHECK_THROWS(throw Unsupported("b"), std::runtime_error, "b");
  CHECK_THROWS(throw BackendError("c"), std::runtime_error, "c");
  CHECK_THROWS(throw Interrupted("d"), std::runtime_error, "d");
}
