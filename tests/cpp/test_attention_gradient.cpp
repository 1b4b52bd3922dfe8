#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/attention_gradient.h"
#include "cpu/strip_operator.h"

// Gradients by products with f against the formulas on dense matrices in double.

using namespace convbasis;

namespace {

struct Size {
  index_t n, columns, head_dim, value_dim;
  bool has_upper = false;
};

template <class T>
using Numbers = std::vector<T>;

template <class T>
Numbers<T> normal(std::mt19937& random, index_t count, double mean = 0) {
  std::normal_distribution<double> distribution(mean, 1);
  Numbers<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(distribution(random));
  return numbers;
}

template <class To, class From>
Numbers<To> converted(const Numbers<From>& from) {
  Numbers<To> to;
  for (const From number : from) to.push_back(static_cast<To>(number));
  return to;
}

template <class T>
StripMatrix<T> strips(std::vector<index_t> starts, const Numbers<T>& kernels, index_t n,
                      index_t columns) {
  return {{n, columns, std::move(starts)}, {kernels.data(), n}};
}

constexpr index_t kStrips = 3;

std::vector<index_t> starts_of(index_t n) {
  std::vector<index_t> starts{0};
  for (const index_t start : {n / 3, n / 2 + 1})
    if (start > starts.back() && start < n) starts.push_back(start);
  return starts;
}

/// One random head and what its forward pass leaves.
template <class T>
struct Head {
  Head(const Size& s, std::uint32_t seed, const Exec& threads = {2, nullptr})
      : size(s), exec(threads), random(seed) {
    const View<const T, 2> values =
        contiguous_view<const T, 2>(value.data(), {size.columns, size.value_dim});
    forward.emplace_back(strips<T>(starts_of(size.n), lower, size.n, size.columns), above(), values,
                         model, exec);
    forward.back().run(contiguous_view<T, 2>(output.data(), {size.n, size.value_dim}), {});
    for (index_t i = 0; i < size.n; ++i) {
      double sum = 0;
      for (index_t c = 0; c < size.value_dim; ++c) {
        const auto at = static_cast<std::size_t>(i * size.value_dim + c);
        sum += static_cast<double>(grad[at]) * static_cast<double>(output[at]);
      }
      delta.push_back(sum);
    }
  }
  const StripMatrix<T>* above() {
    if (!size.has_upper) return nullptr;
    upper_matrix = strips<T>(starts_of(size.n), upper, size.n, size.n);
    return &upper_matrix;
  }

  /// Logits; -inf where a key is not visible.
  [[nodiscard]] Numbers<double> logits() const {
    const index_t n = size.n, m = size.columns;
    Numbers<double> dense(static_cast<std::size_t>(n * m),
                          -std::numeric_limits<double>::infinity());
    const std::vector<index_t> starts = starts_of(n);
    const auto strip_of = [&](index_t column) {
      index_t r = 0;
      while (r + 1 < static_cast<index_t>(starts.size()) &&
             starts[static_cast<std::size_t>(r) + 1] <= column)
        ++r;
      return r;
    };
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < m; ++j) {
        double& entry = dense[static_cast<std::size_t>(i * m + j)];
        if (j <= i)
          entry = static_cast<double>(lower[static_cast<std::size_t>(strip_of(j) * n + i - j)]);
        if (j > i && size.has_upper)
          entry =
              static_cast<double>(upper[static_cast<std::size_t>(strip_of(n - 1 - j) * n + j - i)]);
      }
    return dense;
  }

  Size size;
  Exec exec;
  std::mt19937 random;
  CostModel model{0.09, 0.07, 0.013, 0.037, 1.0};
  Numbers<T> lower = normal<T>(random, kStrips* size.n), upper = normal<T>(random, kStrips* size.n);
  Numbers<T> query = normal<T>(random, size.n* size.head_dim),
             key = normal<T>(random, size.columns* size.head_dim, 2),
             value = normal<T>(random, size.columns* size.value_dim, 2),
             grad = normal<T>(random, size.n* size.value_dim), output = grad;
  std::vector<double> delta;
  StripMatrix<T> upper_matrix;
  std::vector<HeadForward<T>> forward;  // one
};

template <class T>
struct Gradients {
  Numbers<T> query, key, value;
};

constexpr double kScale = 0.375;

/// softmax of the rows, in T.
template <class T>
Numbers<T> softmax(const Numbers<double>& logits, index_t n, index_t m) {
  Numbers<T> f(logits.size(), T(0));
  for (index_t i = 0; i < n; ++i) {
    const auto begin = static_cast<std::size_t>(i * m), end = begin + static_cast<std::size_t>(m);
    double top = -std::numeric_limits<double>::infinity();
    for (std::size_t e = begin; e < end; ++e) top = std::max(top, logits[e]);
    T sum = 0;
    for (std::size_t e = begin; e < end; ++e) {
      f[e] = std::exp(static_cast<T>(logits[e]) - static_cast<T>(top));
      sum += f[e];
    }
    for (std::size_t e = begin; e < end; ++e) f[e] /= sum;
  }
  return f;
}

/// C (rows x columns) = A B with A (rows x inner) read transposed or not.
template <class T>
Numbers<T> product(const Numbers<T>& a, bool transpose, const Numbers<T>& b, index_t rows,
                   index_t inner, index_t columns) {
  Numbers<T> c(static_cast<std::size_t>(rows * columns), T(0));
  for (index_t i = 0; i < rows; ++i)
    for (index_t k = 0; k < inner; ++k)
      for (index_t j = 0; j < columns; ++j)
        c[static_cast<std::size_t>(i * columns + j)] +=
            a[static_cast<std::size_t>(transpose ? k * rows + i : i * inner + k)] *
            b[static_cast<std::size_t>(k * columns + j)];
  return c;
}

/// The formulas, with all matrices formed in T.
template <class T, class U>
Gradients<T> dense_gradients(const Head<U>& head) {
  const auto [n, m, d, dv, unused] = head.size;
  const Numbers<T> query = converted<T>(head.query), key = converted<T>(head.key),
                   value = converted<T>(head.value), grad = converted<T>(head.grad);
  const Numbers<T> f = softmax<T>(head.logits(), n, m);
  const Numbers<T> output = product(f, false, value, n, m, dv);
  Numbers<T> score_grad(f.size());
  for (index_t i = 0; i < n; ++i) {
    T delta = 0;
    for (index_t c = 0; c < dv; ++c)
      delta +=
          grad[static_cast<std::size_t>(i * dv + c)] * output[static_cast<std::size_t>(i * dv + c)];
    for (index_t j = 0; j < m; ++j) {
      T sum = 0;
      for (index_t c = 0; c < dv; ++c)
        sum += grad[static_cast<std::size_t>(i * dv + c)] *
               value[static_cast<std::size_t>(j * dv + c)];
      const auto at = static_cast<std::size_t>(i * m + j);
      score_grad[at] = static_cast<T>(kScale) * f[at] * (sum - delta);
    }
  }
  return {product(score_grad, false, key, n, m, d), product(score_grad, true, query, m, n, d),
          product(f, true, grad, m, n, dv)};
}

/// What attention_gradient adds to zeros.
template <class T>
Gradients<T> run(const AttentionOperator<T>& f, const Head<T>& head, const Exec& exec) {
  const auto [n, m, d, dv, unused] = head.size;
  Gradients<T> to{Numbers<T>(head.query.size()), Numbers<T>(head.key.size()),
                  Numbers<T>(head.value.size())};
  attention_gradient<T>(f,
                        {{head.query.data(), d},
                         {head.key.data(), d},
                         {head.value.data(), dv},
                         {head.grad.data(), dv},
                         head.delta.data(),
                         d,
                         dv,
                         kScale},
                        {{to.query.data(), d}, {to.key.data(), d}, {to.value.data(), dv}}, exec);
  return to;
}

/// Norm of the difference, relative.
template <class T, class U>
double distance(const Numbers<T>& got, const Numbers<U>& want) {
  double apart = 0, size = 0;
  CHECK(got.size() == want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto exact = static_cast<double>(want[i]);
    apart += std::pow(static_cast<double>(got[i]) - exact, 2);
    size += exact * exact;
  }
  return std::sqrt(apart / std::max(size, 1e-30));
}

template <class T, class U>
void check_close(const Gradients<T>& got, const Gradients<U>& want, double tolerance) {
  CHECK_NEAR(distance(got.query, want.query), 0.0, tolerance);
  CHECK_NEAR(distance(got.key, want.key), 0.0, tolerance);
  CHECK_NEAR(distance(got.value, want.value), 0.0, tolerance);
}

/// f as a full matrix: what any implementation has to give.
template <class T>
class DenseOperator final : public AttentionOperator<T> {
 public:
  explicit DenseOperator(const Head<T>& head)
      : n_(head.size.n), m_(head.size.columns), f_(softmax<T>(head.logits(), n_, m_)) {}
  [[nodiscard]] index_t rows() const override { return n_; }
  [[nodiscard]] index_t columns() const override { return m_; }
  void multiply(bool transpose, Rows<const T> x, Rows<T> y, index_t channels) const override {
    for (index_t o = 0; o < (transpose ? m_ : n_); ++o) {
      std::fill_n(y.row(o), channels, T(0));
      for (index_t i = 0; i < (transpose ? n_ : m_); ++i) {
        const T weight = f_[static_cast<std::size_t>(transpose ? i * m_ + o : o * m_ + i)];
        for (index_t c = 0; c < channels; ++c) y.row(o)[c] += weight * x.row(i)[c];
      }
    }
  }

 private:
  index_t n_, m_;
  Numbers<T> f_;
};

const std::vector<Size> kSizes{{1, 1, 4, 3, false},      {1, 1, 1, 1, true},
                               {37, 37, 5, 3, false},    {37, 37, 16, 21, true},
                               {300, 260, 9, 4, false},  {700, 700, 8, 5, true},
                               {1100, 1100, 4, 6, false}};

/// Blocks of other lengths than that of the tiles, and one that leaves nothing far.
const std::vector<index_t> kNear{0, 32, 256, 2048};

}  // namespace

TEST(strips_give_the_gradients_of_dense_formulas) {
  for (const Size& size : kSizes) {
    const Head<double> head(size, 7);
    const Gradients<double> want = dense_gradients<double>(head);
    for (const index_t near : kNear)
      check_close(
          run<double>(StripOperator<double>(head.forward[0], near, head.exec), head, head.exec),
          want, 1e-12);
  }
}

TEST(products_alone_give_the_same_gradients) {
  for (const Size& size : {Size{37, 37, 5, 3, false}, Size{300, 260, 9, 4, false}}) {
    const Head<double> head(size, 8);
    check_close(run<double>(DenseOperator<double>(head), head, {2, nullptr}),
                dense_gradients<double>(head), 1e-12);
  }
}

TEST(float_gradients_are_as_good_as_those_of_dense_float) {
  for (const Size& size :
       {Size{300, 260, 9, 4, false}, Size{700, 700, 8, 5, true}, Size{1100, 1100, 16, 16, false}}) {
    const Head<float> head(size, 9);
    const Gradients<double> want = dense_gradients<double>(head);
    const Gradients<float> naive = dense_gradients<float>(head);
    for (const index_t near : kNear) {
      const Gradients<float> got =
          run<float>(StripOperator<float>(head.forward[0], near, head.exec), head, head.exec);
      CHECK(distance(got.query, want.query) <= 3 * distance(naive.query, want.query));
      CHECK(distance(got.key, want.key) <= 3 * distance(naive.key, want.key));
      CHECK(distance(got.value, want.value) <= 3 * distance(naive.value, want.value));
    }
  }
}

TEST(gradients_are_added) {
  const Head<double> head({37, 37, 5, 3, false}, 10);
  const StripOperator<double> f(head.forward[0], 32, head.exec);
  const Gradients<double> once = run<double>(f, head, head.exec);
  Gradients<double> sums = once;
  attention_gradient<double>(f,
                             {{head.query.data(), 5},
                              {head.key.data(), 5},
                              {head.value.data(), 3},
                              {head.grad.data(), 3},
                              head.delta.data(),
                              5,
                              3,
                              kScale},
                             {{sums.query.data(), 5}, {sums.key.data(), 5}, {sums.value.data(), 3}},
                             head.exec);
  for (std::size_t i = 0; i < sums.query.size(); ++i)
    CHECK_NEAR(sums.query[i], 2 * once.query[i], 1e-14);
  for (std::size_t i = 0; i < sums.value.size(); ++i)
    CHECK_NEAR(sums.value[i], 2 * once.value[i], 1e-14);
}

TEST(threads_do_not_change_gradients) {
  for (const Size& size : {Size{700, 700, 8, 5, true}, Size{1100, 1100, 4, 6, false}})
    for (const index_t near : kNear) {
      const Head<float> head(size, 11, {1, nullptr});
      const Gradients<float> one =
          run<float>(StripOperator<float>(head.forward[0], near, {1, nullptr}), head, {1, nullptr});
      for (const int threads : {2, 3}) {
        const Exec exec{threads, nullptr};
        const Gradients<float> more =
            run<float>(StripOperator<float>(head.forward[0], near, exec), head, exec);
        CHECK(one.query == more.query);
        CHECK(one.key == more.key);
        CHECK(one.value == more.value);
      }
    }
}

TEST(products_by_strips_are_adjoint) {
  for (const Size& size : kSizes) {
    Head<double> head(size, 12);
    const index_t channels = kernels<double>().lanes, n = size.n, m = size.columns;
    const Numbers<double> x = normal<double>(head.random, m * channels),
                          z = normal<double>(head.random, n * channels);
    Numbers<double> fx(z.size()), ftz(x.size());
    const auto dot = [](const Numbers<double>& a, const Numbers<double>& b) {
      double sum = 0;
      for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
      return sum;
    };
    for (const index_t near : kNear) {
      const StripOperator<double> f(head.forward[0], near, head.exec);
      f.multiply(false, {x.data(), channels}, {fx.data(), channels}, channels);
      f.multiply(true, {z.data(), channels}, {ftz.data(), channels}, channels);
      const double size_of_both = std::sqrt(dot(x, x) * dot(z, z));
      CHECK_NEAR(dot(fx, z), dot(x, ftz), 1e-13 * size_of_both);
      f.far(false)->multiply({x.data(), channels}, {fx.data(), channels}, channels);
      f.far(true)->multiply({z.data(), channels}, {ftz.data(), channels}, channels);
      CHECK_NEAR(dot(fx, z), dot(x, ftz), 1e-13 * size_of_both);
    }
  }
}

TEST(near_blocks_grow_to_all_rows_of_short_heads) {
  const Head<float> head({300, 300, 8, 8, false}, 13);
  CHECK(choose_near(head.forward[0], 8, 8, head.model) >= 300);
}
