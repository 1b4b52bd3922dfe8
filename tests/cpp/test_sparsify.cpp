#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "convbasis/error.h"
#include "convbasis/sparsify.h"

using namespace convbasis;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A matrix of columns with a share of entries that are not 0, dense and sparse, and a symmetric M.
struct Problem {
  Problem(index_t rows, index_t count, double share)
      : n(rows), d(count), x(at(n * d)), m(at(n * n)) {
    std::mt19937_64 random(5);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (double& value : x) value = uniform(random) < share ? normal(random) : 0;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j <= i; ++j) m[at(i * n + j)] = m[at(j * n + i)] = normal(random);
    for (index_t j = 0; j < d; ++j) {
      for (index_t i = 0; i < n; ++i)
        if (x[at(i * d + j)] != 0) {
          entry_rows.push_back(i);
          values.push_back(x[at(i * d + j)]);
        }
      starts.push_back(static_cast<index_t>(values.size()));
    }
  }
  [[nodiscard]] View<const double, 2> dense() const {
    return contiguous_view<const double, 2>(x.data(), {n, d});
  }
  [[nodiscard]] SparseColumns sparse() const { return {n, starts, entry_rows, values}; }
  [[nodiscard]] View<const double, 2> matrix() const {
    return contiguous_view<const double, 2>(m.data(), {n, n});
  }
  [[nodiscard]] std::vector<double> forms(const Columns& columns, int threads = 2) const {
    std::vector<double> result(at(d), -1.0);
    quadratic_forms(columns, matrix(), result, {threads});
    return result;
  }
  index_t n, d;
  std::vector<double> x, m, values;
  std::vector<index_t> starts{0}, entry_rows;
};

}  // namespace

TEST(sparsify_forms_are_sums_over_pairs) {
  for (const index_t n : {1, 2, 17, 64})
    for (const index_t d : {0, 1, 255, 257, 600})
      for (const double share : {0.05, 1.0}) {
        const Problem p(n, d, share);
        const std::vector<double> dense = p.forms(p.dense()), sparse = p.forms(p.sparse());
        for (index_t j = 0; j < d; ++j) {
          long double sum = 0, size = 0;
          for (index_t i = 0; i < n; ++i)
            for (index_t k = 0; k < n; ++k) {
              const long double term = static_cast<long double>(p.x[at(i * d + j)]) *
                                       p.m[at(i * n + k)] * p.x[at(k * d + j)];
              sum += term;
              size += std::abs(term);
            }
          const auto limit = static_cast<double>(size) * 1e-14;
          CHECK(std::abs(dense[at(j)] - static_cast<double>(sum)) <= limit);
          CHECK(std::abs(sparse[at(j)] - static_cast<double>(sum)) <= limit);
        }
      }
}

TEST(sparsify_forms_do_not_depend_on_threads) {
  const Problem p(40, 3000, 0.2);
  CHECK(p.forms(p.dense(), 1) == p.forms(p.dense(), 5));
  CHECK(p.forms(p.sparse(), 1) == p.forms(p.sparse(), 5));
}

TEST(sparsify_repeated_rows_add_up) {
  const std::vector<index_t> starts{0, 2}, rows{1, 1};
  const std::vector<double> values{2, 3}, m{7, 0, 0, 4};
  double form = 0;
  quadratic_forms(SparseColumns{2, starts, rows, values},
                  contiguous_view<const double, 2>(m.data(), {2, 2}), {&form, 1});
  CHECK(form == 100);
}

TEST(sparsify_inverses_invert) {
  for (const index_t k : {1, 2, 17, 65}) {
    const Problem p(k, 1, 1.0);
    const double low = -3.0 * static_cast<double>(k), high = 4.0 * static_cast<double>(k);
    std::vector<double> inverses(at(2 * k * k)), squares(at(2 * k * k));
    barrier_inverses(p.matrix(), low, high, contiguous_view<double, 3>(inverses.data(), {2, k, k}),
                     contiguous_view<double, 3>(squares.data(), {2, k, k}));
    for (index_t side = 0; side < 2; ++side)
      for (index_t i = 0; i < k; ++i)
        for (index_t j = 0; j < k; ++j) {
          double identity = 0, square = 0;
          for (index_t c = 0; c < k; ++c) {
            const double shifted = side == 0 ? p.m[at(i * k + c)] - (i == c ? low : 0)
                                             : (i == c ? high : 0) - p.m[at(i * k + c)];
            const double right = inverses[at((side * k + c) * k + j)];
            identity += shifted * right;
            square += inverses[at((side * k + i) * k + c)] * right;
          }
          CHECK_NEAR(identity, i == j ? 1.0 : 0.0, 1e-12);
          CHECK_NEAR(squares[at((side * k + i) * k + j)], square, 1e-14);
        }
  }
}

TEST(sparsify_gram_is_that_of_the_rows) {
  for (const index_t n : {1, 2, 63, 64, 65, 130}) {
    const Problem p(n, 40, 0.7);
    std::vector<double> gram(at(n * n)), again(at(n * n));
    gram_matrix(p.dense(), contiguous_view<double, 2>(gram.data(), {n, n}), {1});
    gram_matrix(p.dense(), contiguous_view<double, 2>(again.data(), {n, n}), {5});
    CHECK(gram == again);
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j) {
        double dot = 0;
        for (index_t c = 0; c < 40; ++c) dot += p.x[at(i * 40 + c)] * p.x[at(j * 40 + c)];
        CHECK_NEAR(gram[at(i * n + j)], dot, 1e-13 * 40);
      }
  }
}

TEST(sparsify_eigenvectors_are_rows) {
  for (const index_t n : {1, 2, 17, 64}) {
    const Problem p(n, 1, 1.0);
    std::vector<double> values(at(n)), vectors(at(n * n));
    symmetric_eigen(p.matrix(), values, contiguous_view<double, 2>(vectors.data(), {n, n}));
    CHECK(std::is_sorted(values.begin(), values.end()));
    for (index_t r = 0; r < n; ++r)
      for (index_t i = 0; i < n; ++i) {
        double product = 0, dot = 0;
        for (index_t j = 0; j < n; ++j) {
          product += p.m[at(i * n + j)] * vectors[at(r * n + j)];
          dot += vectors[at(i * n + j)] * vectors[at(r * n + j)];
        }
        CHECK_NEAR(product, values[at(r)] * vectors[at(r * n + i)], 1e-12);
        CHECK_NEAR(dot, i == r ? 1.0 : 0.0, 1e-12);
      }
  }
}

TEST(sparsify_arguments_are_checked) {
  Problem p(3, 4, 1.0);
  std::vector<double> forms(4);
  const auto call = [&](const Columns& columns) { quadratic_forms(columns, p.matrix(), forms); };
  const Problem other(2, 4, 1.0);
  CHECK_THROWS(call(other.dense()), InvalidArgument, "matrix has shape (3, 3); expected (2, 2)");
  CHECK_THROWS(quadratic_forms(p.dense(), p.matrix(), {forms.data(), 3}), InvalidArgument,
               "forms has 3 elements; expected 4");
  double out[18];
  const auto inverses = contiguous_view<double, 3>(out, {2, 3, 3});
  CHECK_THROWS(barrier_inverses(p.matrix(), 0.0, 0.0, inverses, inverses), InvalidArgument,
               "matrix is not between its barriers");
  CHECK_THROWS(barrier_inverses(other.matrix(), -9.0, 9.0, inverses, inverses), InvalidArgument,
               "inverses has shape (2, 3, 3); expected (2, 2, 2)");
  const auto wrong = contiguous_view<double, 2>(out, {2, 2});
  CHECK_THROWS(gram_matrix(p.dense(), wrong), InvalidArgument, "gram has shape (2, 2)");
  CHECK_THROWS(symmetric_eigen(p.matrix(), {out + 9, 3}, wrong), InvalidArgument,
               "vectors has shape (2, 2)");
  CHECK_THROWS(symmetric_eigen(other.matrix(), {out + 9, 3}, wrong), InvalidArgument,
               "values has 3 elements; expected 2");
  View<const double, 2> gaps{p.x.data(), {3, 2}, {4, 2}};
  CHECK_THROWS(call(gaps), InvalidArgument, "expected contiguous rows");
  p.entry_rows[1] = 3;
  CHECK_THROWS(call(p.sparse()), InvalidArgument, "rows has entries outside of the matrix");
  p.entry_rows.pop_back();
  CHECK_THROWS(call(p.sparse()), InvalidArgument, "rows has another length");
  p.starts[1] = 9;
  CHECK_THROWS(call(p.sparse()), InvalidArgument, "starts does not divide the entries");
}
