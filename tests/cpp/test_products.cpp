#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <random>

#include "check.h"
#include "core/buffer.h"
#include "cpu/simd/kernels.h"

// Products of spectra, in every build, against plain complex sums in long double.

using namespace convbasis;

namespace {

using Complex = std::complex<long double>;

/// Pieces of blocks, weights and spectra of a span with blocks on both sides.
template <class T>
class Problem {
 public:
  Problem(const Kernels<T>& simd, index_t blocks, index_t count, std::vector<index_t> pattern)
      : simd_(simd), begin_(3), end_(3 + blocks), count_(count) {
    const index_t all_blocks = end_ + 2;
    for (index_t b = 0; b < all_blocks; ++b) {
      for (index_t p = pattern[static_cast<std::size_t>(b) % pattern.size()]; p > 0; --p)
        block_.push_back(b);
      first_.push_back(static_cast<index_t>(block_.size()));
    }
    for (index_t s = 0; s < first_.back(); ++s) offset_.push_back(s * all_blocks - block(s) - 1);

    // Weights that no product of the span needs are NaN, and so are the numbers around the values.
    weight_stride_ = 2 * first_.back() * all_blocks + 5;
    const auto weights = static_cast<std::size_t>(count * weight_stride_);
    re_.assign(weights, kNan);
    im_.assign(weights, kNan);
    for (index_t f = 0; f < count; ++f)
      for (index_t s = first(begin_); s < first(end_); ++s)
        for (index_t b = block(s) + 1; b < end_; ++b) {
          re_[weight_at(f, s, b)] = random();
          im_[weight_at(f, s, b)] = random();
        }
  }

  /// Multiplies; compares all numbers in memory.
  void check(bool transposed) {
    const index_t pieces = first(end_ - 1) - first(begin_), blocks = end_ - begin_ - 1;
    const index_t inputs = transposed ? blocks : pieces, outputs = transposed ? pieces : blocks;
    const index_t point = 2 * simd_.lanes, stride = (count_ + 3) * point;
    Buffer<T> spectra(std::max({inputs, outputs, index_t{1}}) * stride);
    for (index_t i = 0; i < spectra.size(); ++i) {
      const index_t f = i % stride / point - 1;
      spectra[i] = f >= 0 && f < count_ && i / stride < inputs ? random() : T(77);
    }
    const std::vector<T> before(spectra.data(), spectra.data() + spectra.size());
    std::vector<T> packed(static_cast<std::size_t>(count_ * inputs * point + 1), T(88));
    (transposed ? simd_.multiply_transposed : simd_.multiply)(
        {re_.data(), im_.data(), weight_stride_, offset_.data(), first_.data(), block_.data(),
         spectra.data() + point, stride, count_, packed.data()},
        begin_, end_);
    CHECK(packed.back() == T(88));

    const auto value = [&](const auto& numbers, index_t of, index_t f, index_t lane) {
      const T* at = numbers.data() + of * stride + (f + 1) * point + lane;
      return Complex(static_cast<long double>(at[0]), static_cast<long double>(at[simd_.lanes]));
    };
    double worst = 0;
    for (index_t o = 0; o < outputs; ++o)
      for (index_t f = 0; f < count_; ++f)
        for (index_t lane = 0; lane < simd_.lanes; ++lane) {
          Complex want;
          long double size = 0;
          for (index_t i = 0; i < inputs; ++i) {
            const index_t s = first(begin_) + (transposed ? o : i);
            const index_t b = begin_ + 1 + (transposed ? i : o);
            if (b <= block(s)) continue;
            const Complex w = weight(f, s, b), x = value(before, i, f, lane);
            want += (transposed ? std::conj(w) : w) * x;
            size += 2 * std::abs(w) * std::abs(x);
          }
          const Complex got = value(spectra, o, f, lane);
          if (size == 0) {
            CHECK(got == Complex(0));
          } else {
            const auto error = static_cast<double>(std::abs(got - want) / size);
            worst = error <= worst || std::isnan(worst) ? worst : error;
            CHECK(std::abs(want) > 20 * tolerance(inputs) * size);  // zeros would not pass
          }
        }
    CHECK_NEAR(worst, 0.0, tolerance(inputs));
    for (index_t i = 0; i < spectra.size(); ++i) {
      const index_t f = i % stride / point - 1;
      if (f < 0 || f >= count_ || i / stride >= outputs)
        CHECK(spectra[i] == before[static_cast<std::size_t>(i)]);
    }
  }

 private:
  static constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

  /// Of a sum of so many products, relative to the sum of their magnitudes.
  static double tolerance(index_t terms) {
    return static_cast<double>(std::numeric_limits<T>::epsilon()) * static_cast<double>(terms + 1);
  }
  /// Away from zero, so that few sums are small by chance.
  T random() { return static_cast<T>(uniform_(engine_) + 0.5); }
  [[nodiscard]] index_t first(index_t b) const { return first_[static_cast<std::size_t>(b)]; }
  [[nodiscard]] index_t block(index_t s) const { return block_[static_cast<std::size_t>(s)]; }
  [[nodiscard]] std::size_t weight_at(index_t f, index_t s, index_t b) const {
    return static_cast<std::size_t>(f * weight_stride_ + offset_[static_cast<std::size_t>(s)] + b);
  }
  [[nodiscard]] Complex weight(index_t f, index_t s, index_t b) const {
    return {static_cast<long double>(re_[weight_at(f, s, b)]),
            static_cast<long double>(im_[weight_at(f, s, b)])};
  }

  const Kernels<T>& simd_;
  index_t begin_, end_, count_, weight_stride_;
  std::vector<index_t> first_{0}, block_, offset_;
  std::vector<T> re_, im_;
  std::mt19937_64 engine_{1};
  std::uniform_real_distribution<double> uniform_;
};

template <class T>
void check_all(bool transposed) {
  for (const Kernels<T>* simd : available_kernels<T>())
    for (index_t blocks = 1; blocks <= 17; ++blocks)
      for (const index_t count : {1, 4})
        for (const std::vector<index_t>& pieces_of_blocks :
             std::vector<std::vector<index_t>>{{1}, {0}, {2, 0, 1, 5}, {5, 1, 0, 0, 2}, {0, 0, 1}})
          Problem<T>(*simd, blocks, count, pieces_of_blocks).check(transposed);
}

}  // namespace

TEST(products_match_complex_sums) {
  check_all<float>(false);
  check_all<double>(false);
}

TEST(transposed_products_match_complex_sums) {
  check_all<float>(true);
  check_all<double>(true);
}
