#include "cpu/strip_operator.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cpu/levels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace convbasis {
namespace {

/// Blocks that the transforms of the far part may have.
constexpr index_t kLeastNear = 256, kMostNear = 16384;

// Steps of attention_gradient, as multiples of one that a CostModel names: fitted to its times with
// 4 strips, n = 16,384 and 65,536.
constexpr double kTile = 0.75;  // a multiply-add of a near tile, in those of exact attention
constexpr double kLevel =
    1.6;                       // a far product, in stages: what it reads and writes is nowhere near
constexpr double kTerm = 120;  // a channel of a row, formed and added up, in direct steps

Level far_level(index_t rows, index_t near) { return {near, round_up(rows, near)}; }

}  // namespace

Schedule far_schedule(index_t rows, index_t near) { return {{far_level(rows, near)}, near}; }

template <class T>
StripOperator<T>::StripOperator(const HeadForward<T>& head, index_t near, const Exec& exec)
    : halves_(head.halves()), near_(near), inverse_sums_(head.inverse_sums()), exec_(exec) {}

/// to = D^-1 from; what stands in rows that are 0 does not matter.
template <class T>
void StripOperator<T>::scale_rows(Rows<const T> from, Rows<T> to, index_t channels) const {
  for_each_row(exec_, rows(), [&](index_t i) {
    T* row = to.row(i);
    const T factor = static_cast<T>(inverse_sums_[i]);
    if (factor == T(0)) {
      std::fill_n(row, channels, T(0));
      return;
    }
    if (row != from.row(i)) std::copy_n(from.row(i), channels, row);
    kernels<T>().scale(row, factor, channels);
  });
}

template <class T>
void StripOperator<T>::multiply(bool transpose, Rows<const T> x, Rows<T> y,
                                index_t channels) const {
  const index_t n = rows();
  if (n == 0) return;
  Buffer<T> scaled(transpose ? n * channels : 0), upper(halves_.size() > 1 ? n * channels : 0);
  if (transpose) {
    scale_rows(x, {scaled.data(), channels}, channels);
    x = {scaled.data(), channels};
  }
  StageSeconds seconds;
  multiply_strips(halves_[0].weights.matrix, halves_[0].schedule, transpose, x, y, channels, exec_,
                  seconds);
  if (halves_.size() > 1) {
    const Rows<T> above{upper.data(), channels};
    multiply_strips(halves_[1].weights.matrix, halves_[1].schedule, transpose, reversed(x, n),
                    above, channels, exec_, seconds);
    for_each_row(exec_, n, [&](index_t i) {
      T* to = y.row(i);
      const T* from = above.row(n - 1 - i);
      for (index_t c = 0; c < channels; ++c) to[c] += from[c];
    });
  }
  if (!transpose) scale_rows({y.data, y.stride}, y, channels);
}

/// One level whose blocks are the near ones leaves just their diagonal out.
template <class T>
class StripOperator<T>::Far final : public PreparedProduct<T> {
 public:
  Far(const StripOperator& f, bool transpose) : f_(f), transpose_(transpose) {
    StageSeconds seconds;
    for (const Half<T>& half : f.halves_) {
      const StripMatrix<T>& matrix = half.weights.matrix;
      if (matrix.layout.count() == 0) break;
      levels_.push_back(
          std::make_unique<LevelRun<T>>(matrix, far_level(f.rows(), f.near_), transpose, f.exec_));
      levels_.back()->prepare(seconds);
    }
  }

  void multiply(Rows<const T> x, Rows<T> y, index_t channels) override {
    const index_t n = f_.rows();
    if (transpose_) {
      if (scaled_.size() < n * channels) scaled_ = Buffer<T>(n * channels);
      f_.scale_rows(x, {scaled_.data(), channels}, channels);
      x = {scaled_.data(), channels};
    }
    for_each_row(f_.exec_, transpose_ ? f_.columns() : n,
                 [&](index_t i) { std::fill_n(y.row(i), channels, T(0)); });
    StageSeconds seconds;
    for (std::size_t half = 0; half < levels_.size(); ++half)
      levels_[half]->apply(half == 0 ? x : reversed(x, n), half == 0 ? y : reversed(y, n), channels,
                           seconds);
    if (!transpose_) f_.scale_rows({y.data, y.stride}, y, channels);
  }

 private:
  const StripOperator& f_;
  bool transpose_;
  std::vector<std::unique_ptr<LevelRun<T>>> levels_;
  Buffer<T> scaled_;
};

template <class T>
std::unique_ptr<PreparedProduct<T>> StripOperator<T>::far(bool transpose) const {
  if (near_ == 0) return AttentionOperator<T>::far(transpose);
  return std::make_unique<Far>(*this, transpose);
}

template <class T>
typename StripOperator<T>::Columns StripOperator<T>::near_columns(index_t row) const {
  if (near_ == 0) return {};
  const index_t n = rows(), all = columns();
  const index_t begin = std::min(row / near_ * near_, all), end = std::min(row + 1, all);
  if (halves_.size() == 1) return {begin, end};
  return {begin, n - (n - 1 - row) / near_ * near_};
}

template <class T>
void StripOperator<T>::near_entries(index_t row, index_t first, index_t last, T* out) const {
  const Columns near = near_columns(row);
  const index_t begin = std::clamp(near.begin, first, last);
  const index_t end = std::clamp(near.end, begin, last);
  const T factor = static_cast<T>(inverse_sums_[row]);
  if (begin == end || factor == T(0)) {
    std::fill_n(out, last - first, T(0));
    return;
  }
  std::fill_n(out, begin - first, T(0));
  // Tiles of weights are read like those of logits.
  StripScores<T> weights(halves_[0].weights.matrix,
                         halves_.size() > 1 ? &halves_[1].weights.matrix : nullptr);
  weights.select({&row, 1});
  weights.fill(begin, end, out + begin - first, 0);
  kernels<T>().scale(out + begin - first, factor, end - begin);
  std::fill_n(out + end - first, last - end, T(0));
}

template <class T>
index_t choose_near(const HeadForward<T>& head, index_t head_dim, index_t value_dim,
                    const CostModel& model) {
  const index_t n = head.halves().front().weights.matrix.layout.rows;
  const auto whole = static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(n)));
  const index_t channels = 2 * (value_dim + 1) * round_up(head_dim, kernels<T>().lanes);
  const auto cost = [&](index_t near) {
    double total = kTile * model.exact * static_cast<double>(n) *
                   static_cast<double>(std::min(near, n)) / 2 *
                   static_cast<double>(value_dim + 1 + 2 * head_dim);
    if (near < n) {
      const StageCosts stages = stage_costs(head.halves().front().weights.matrix.layout, channels,
                                            far_schedule(n, near), model);
      total += kLevel * (stages.transform + stages.products + stages.inverse) +
               kTerm * model.direct * static_cast<double>(n) * static_cast<double>(channels);
    }
    return total;
  };
  index_t best = whole;
  for (index_t near = kLeastNear; near <= std::min(kMostNear, whole / 2); near *= 2)
    if (cost(near) < cost(best)) best = near;
  return best;
}

#define CONVBASIS_INSTANTIATE(T)   \
  template class StripOperator<T>; \
  template index_t choose_near(const HeadForward<T>&, index_t, index_t, const CostModel&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
