// What choosing columns takes: forms, X X^T, whitening, inverses at barriers, single columns.

#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "convbasis/error.h"
#include "cpu/barriers.h"
#include "cpu/columns.h"
#include "cpu/whitening.h"
#include "wide.h"

using namespace convbasis;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

Dense symmetric(index_t n) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  Dense m(n, n);
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j <= i; ++j) m(i, j) = m(j, i) = normal(random);
  return m;
}

bool same(const Dense& a, const Dense& b) {
  return a.rows() == b.rows() && a.columns() == b.columns() &&
         std::equal(a.data(), a.data() + a.rows() * a.columns(), b.data());
}

}  // namespace

TEST(columns_forms_are_sums_over_pairs) {
  for (const index_t n : {1, 2, 17, 64})
    for (const index_t d : {0, 1, 255, 257, 600})
      for (const double share : {0.05, 1.0}) {
        const Wide p(n, d, share);
        const Dense m = symmetric(n);
        const auto dense = quadratic_forms(p.dense(), m, {}),
                   sparse = quadratic_forms(p.sparse(), m, {});
        for (index_t j = 0; j < d; ++j) {
          long double sum = 0, size = 0;
          for (index_t i = 0; i < n; ++i)
            for (index_t k = 0; k < n; ++k) {
              const long double term = static_cast<long double>(p(i, j)) * m(i, k) * p(k, j);
              sum += term;
              size += std::abs(term);
            }
          const auto limit = static_cast<double>(size) * 1e-14;
          CHECK_NEAR(dense[at(j)], static_cast<double>(sum), limit);
          CHECK_NEAR(sparse[at(j)], static_cast<double>(sum), limit);
        }
      }
}

TEST(columns_gram_is_that_of_the_rows) {
  for (const index_t n : {1, 2, 63, 64, 65, 130})
    for (const double share : {0.02, 0.7}) {
      const Wide p(n, 3000, share);
      const Dense dense = gram_of(p.dense(), {1}), sparse = gram_of(p.sparse(), {1});
      CHECK(same(dense, gram_of(p.dense(), {5})));
      CHECK(same(sparse, gram_of(p.sparse(), {5})));
      for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < n; ++j) {
          double dot = 0;
          for (index_t c = 0; c < p.d; ++c) dot += p(i, c) * p(j, c);
          CHECK_NEAR(dense(i, j), dot, 1e-11);
          CHECK_NEAR(sparse(i, j), dot, 1e-11);
          CHECK(dense(i, j) == dense(j, i));
        }
    }
}

TEST(columns_forms_do_not_depend_on_threads) {
  const Wide p(40, 3000, 0.2);
  const Dense m = symmetric(40);
  CHECK(quadratic_forms(p.dense(), m, {1}) == quadratic_forms(p.dense(), m, {5}));
  CHECK(quadratic_forms(p.sparse(), m, {1}) == quadratic_forms(p.sparse(), m, {5}));
}

TEST(columns_repeated_rows_add_up) {
  const std::vector<index_t> starts{0, 2}, rows{1, 1}, first{0};
  const std::vector<double> values{2, 3};
  const SparseColumns x{2, starts, rows, values};
  Dense m(2, 2, 0.0);
  m(1, 1) = 4;
  CHECK(quadratic_forms(x, m, {})[0] == 100);
  CHECK(gram_of(x, {})(1, 1) == 25);
  CHECK(take_columns(x, first, {})(1, 0) == 5);
}

TEST(columns_products_and_transposes) {
  const Wide a(70, 130, 1.0, 1), b(130, 600, 1.0, 2);
  Dense left(70, 130), right(130, 600);
  std::copy(a.x.begin(), a.x.end(), left.data());
  std::copy(b.x.begin(), b.x.end(), right.data());
  const Dense c = product(left, right, {3}), turned = transposed(left);
  CHECK(same(c, product(left, right, {1})));
  for (index_t i = 0; i < 70; i += 23)
    for (index_t j = 0; j < 600; j += 97) {
      double sum = 0;
      for (index_t k = 0; k < 130; ++k) sum += a(i, k) * b(k, j);
      CHECK_NEAR(c(i, j), sum, 1e-11);
    }
  CHECK(turned(129, 69) == left(69, 129));
}

TEST(columns_eigenvectors_are_rows) {
  for (const index_t n : {1, 2, 17, 64}) {
    const Dense m = symmetric(n);
    Dense vectors = symmetric(n);
    const std::vector<double> values = symmetric_eigen(vectors);
    CHECK(std::is_sorted(values.begin(), values.end()));
    for (index_t r = 0; r < n; ++r)
      for (index_t i = 0; i < n; ++i) {
        double sum = 0, dot = 0;
        for (index_t j = 0; j < n; ++j) {
          sum += m(i, j) * vectors(r, j);
          dot += vectors(i, j) * vectors(r, j);
        }
        CHECK_NEAR(sum, values[at(r)] * vectors(r, i), 1e-12);
        CHECK_NEAR(dot, i == r ? 1.0 : 0.0, 1e-12);
      }
  }
}

TEST(columns_are_whitened) {
  for (const index_t n : {1, 5, 40}) {
    Wide p(n, 300, 1.0);
    for (index_t j = 0; j < p.d; ++j) p(n - 1, j) = n > 1 ? 1e5 * p(0, j) : p(0, j);
    const Dense white = whitening(gram_of(p.dense(), {}));
    CHECK(white.rows() == std::max<index_t>(n - 1, 1));
    Dense x(n, p.d);
    std::copy(p.x.begin(), p.x.end(), x.data());
    const Dense identity = gram_matrix(product(white, x, {}).view(), {});
    for (index_t i = 0; i < white.rows(); ++i)
      for (index_t j = 0; j < white.rows(); ++j)
        CHECK_NEAR(identity(i, j), i == j ? 1.0 : 0.0, 1e-9);
  }
}

TEST(columns_inverses_at_barriers_invert) {
  for (const index_t k : {1, 2, 17, 65}) {
    const Dense m = symmetric(k);
    const double low = -3.0 * static_cast<double>(k), high = 4.0 * static_cast<double>(k);
    BarrierInverses found(k);
    CHECK(found.form(m, low, high, {}));
    for (const bool is_low : {true, false}) {
      const Dense &inverse = is_low ? found.below : found.above,
                  &squared = is_low ? found.below_squared : found.above_squared;
      for (index_t i = 0; i < k; ++i)
        for (index_t j = 0; j < k; ++j) {
          double identity = 0, square = 0;
          for (index_t c = 0; c < k; ++c) {
            const double shifted =
                is_low ? m(i, c) - (i == c ? low : 0) : (i == c ? high : 0) - m(i, c);
            identity += shifted * inverse(c, j);
            square += inverse(i, c) * inverse(c, j);
          }
          CHECK_NEAR(identity, i == j ? 1.0 : 0.0, 1e-12);
          CHECK_NEAR(squared(i, j), square, 1e-14);
        }
    }
    CHECK(!found.form(m, high, 2 * high, {}));
  }
}

TEST(columns_are_reweighted) {
  const Wide p(9, 50, 0.3);
  const std::vector<index_t> indices{3, 4, 49};
  const std::vector<double> weights{2.0, 0.5, -1.0};
  for (const Columns& x : {Columns(p.dense()), Columns(p.sparse())}) {
    Dense out(9, 3);
    reweighted_columns(x, indices, weights, out.view());
    for (index_t i = 0; i < 9; ++i)
      for (index_t c = 0; c < 3; ++c) CHECK(out(i, c) == p(i, indices[at(c)]) * weights[at(c)]);
    CHECK_THROWS(reweighted_columns(x, indices, {weights.data(), 2}, out.view()), InvalidArgument,
                 "weights has another length");
    const std::vector<index_t> beyond{0, 1, 50};
    CHECK_THROWS(reweighted_columns(x, beyond, weights, out.view()), InvalidArgument,
                 "indices holds 50; expected 0 <= index < 50");
    CHECK_THROWS(reweighted_columns(x, indices, weights, Dense(9, 2).view()), InvalidArgument,
                 "out has shape (9, 2); expected (9, 3)");
  }
}
