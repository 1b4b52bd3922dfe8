#include "cpu/head_forward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/tiles.h"

namespace convbasis {
namespace {

/// Largest relative rounding error of a row that is let through.
template <class T>
constexpr double kRoundingBudget = sizeof(T) == 4 ? 1e-4 : 2.5e-12;

/// The error of a row over the estimate of its block, which is a root mean square of many rows, and
/// takes the errors of pieces to be independent: up to 7 was seen.
constexpr double kWorstRow = 8;

/// Sums that grow steadily lose about this share of eps with each of their terms (0.12 was seen),
/// besides a few eps that every row loses.
constexpr double kSteadyLoss = 0.15, kUsualLoss = 4;

/// out: where the numerator may be formed, if it has a place for each channel.
template <class T>
void run_half(Half<T>& half, const View<T, 2>& out, Rows<const T> value, index_t channels,
              const CostModel& model, const Exec& exec, StageSeconds& seconds) {
  const StripMatrix<T>& weights = half.weights.matrix;
  const StripLayout& layout = weights.layout;
  half.schedule = choose_schedule(layout, channels, model);
  if (out.data != nullptr && out.strides[1] == 1 && out.shape[1] == channels) {
    half.numerator = {out.data, out.strides[0]};
  } else {
    half.memory = Buffer<T>(layout.rows * channels);
    half.numerator = {half.memory.data(), channels};
  }
  multiply_strips(weights, half.schedule, false, value, half.numerator, channels, exec, seconds);
  StageTimer timer(seconds.normalize);
  half.row_sums = Buffer<double>(layout.rows);
  sum_rows(weights, exec, half.row_sums.data());
}

}  // namespace

template <class T>
void attend_strips(const StripMatrix<T>& lower, const StripMatrix<T>* upper, Rows<const T> value,
                   index_t channels, std::span<const index_t> rows, Rows<T> out, double* lse,
                   const Exec& exec) {
  const index_t count = static_cast<index_t>(rows.size());
  const VisibleKeys visible(upper == nullptr, lower.layout.columns);
  parallel_for(exec, ceil_div(count, kQueryTile), [&](index_t tile, int) {
    const index_t first = tile * kQueryTile;
    const auto mine = rows.subspan(static_cast<std::size_t>(first),
                                   static_cast<std::size_t>(std::min(kQueryTile, count - first)));
    StripScores<T> scores(lower, upper);
    TileSight sight;
    visible.look(mine, sight);
    OnlineSoftmax<T>(channels).attend(scores, value, sight, mine, {out.row(first), out.stride},
                                      lse != nullptr ? lse + first : nullptr);
  });
}

template <class T>
HeadForward<T>::HeadForward(const StripMatrix<T>& lower, const StripMatrix<T>* upper,
                            const View<const T, 2>& value, const CostModel& model, const Exec& exec)
    : value_(value),
      model_(model),
      exec_(exec),
      rows_(lower.layout.rows),
      channels_(round_up(value.shape[1], kernels<T>().lanes)),
      values_(as_value_rows(value, channels_, value_copy_, exec)) {
  halves_.resize(upper != nullptr ? 2 : 1);
  halves_[0].logits = lower;
  if (upper != nullptr) halves_[1].logits = *upper;
}

template <class T>
void HeadForward<T>::run(const View<T, 2>& out, const View<T, 1>& lse) {
  if (rows_ == 0) return;
  {
    StageTimer timer(seconds.exp);
    shift_ = largest_logit(halves_[0].logits, false);
    if (halves_.size() > 1) shift_ = std::max(shift_, largest_logit(halves_[1].logits, true));
    if (!std::isfinite(shift_)) shift_ = T(0);  // no key at all
    for (std::size_t i = 0; i < halves_.size(); ++i)
      halves_[i].weights = exponentiate(halves_[i].logits, shift_, i > 0, exec_);
  }
  run_half(halves_[0], out, values_.rows, channels_, model_, exec_, seconds);
  if (halves_.size() > 1) {
    run_half(halves_[1], {}, reversed(values_.rows, rows_), channels_, model_, exec_, seconds);
  }
  {
    StageTimer timer(seconds.normalize);
    find_peaks();
    find_steady_loss(nullptr);
    divide(out, lse);
  }
  StageTimer timer(seconds.rows);
  sum_spoiled_rows(out, lse);
}

template <class T>
void HeadForward<T>::sum_spoiled_rows(const View<T, 2>& out, const View<T, 1>& lse) {
  rows_exact = static_cast<index_t>(spoiled_.size());
  if (rows_exact == 0) return;
  spoiled_lse_.resize(spoiled_.size());
  Buffer<T> means(rows_exact * channels_);
  attend_strips(halves_[0].logits, halves_.size() > 1 ? &halves_[1].logits : nullptr, values_.rows,
                channels_, spoiled_, Rows<T>{means.data(), channels_}, spoiled_lse_.data(), exec_);
  for (index_t r = 0; r < rows_exact; ++r) {
    const index_t row = spoiled_[static_cast<std::size_t>(r)];
    write_row(means.data() + r * channels_, out, row, values_.unscale);
    if (lse.data != nullptr) lse(row) = static_cast<T>(spoiled_lse_[static_cast<std::size_t>(r)]);
  }
}

template <class T>
void HeadForward<T>::find_steady_loss(const Schedule* other) {
  index_t terms = 0;
  for (const Half<T>& half : halves_)
    for (const Schedule* schedule : {&half.schedule, other})
      for (const Level& level : schedule != nullptr ? schedule->levels : std::vector<Level>{})
        terms = std::max(terms, most_pieces(half.weights.matrix.layout, level));
  steady_loss_ = (kUsualLoss + kSteadyLoss * static_cast<double>(terms)) *
                 static_cast<double>(std::numeric_limits<T>::epsilon());
}

template <class T>
void HeadForward<T>::find_peaks() {
  peaks_.assign(static_cast<std::size_t>(rows_), T(0));
  T peak = 0;
  for (index_t j = 0; j < std::min(rows_, value_.shape[0]); ++j) {
    peak = std::max(peak, values_.peaks[static_cast<std::size_t>(j)]);
    peaks_[static_cast<std::size_t>(j)] = peak;
  }
  for (index_t i = value_.shape[0]; i < rows_; ++i) peaks_[static_cast<std::size_t>(i)] = peak;
  if (halves_.size() > 1) std::fill(peaks_.begin(), peaks_.end(), peak);
}

/// Of products of each half with rows of these norms, in its own blocks or those of `other`.
template <class T>
std::vector<BlockRounding> HeadForward<T>::estimate_rounding(const Schedule* other,
                                                             std::vector<double> norms) const {
  std::vector<BlockRounding> rounding;
  for (const Half<T>& half : halves_) {
    const Schedule& schedule = other != nullptr ? *other : half.schedule;
    rounding.push_back({schedule.diagonal, rounding_of_blocks(half.weights.matrix, schedule, norms,
                                                              channels_, exec_)});
    std::reverse(norms.begin(), norms.end());
  }
  return rounding;
}

/// What rounding may have left in row i of a product, relative to `size`, the root mean square of
/// the row; the largest number that it sees is `peak`.
template <class T>
double HeadForward<T>::relative_rounding(index_t i, const std::vector<BlockRounding>& rounding,
                                         double peak, double size) const {
  if (peak == 0) return 0;
  const auto of_half = [&](std::size_t half, index_t row) {
    return rounding[half].errors[static_cast<std::size_t>(row / rounding[half].block)];
  };
  const double sum = row_sum(i);
  // Weights and products that underflow are lost: at most one smallest normal number a key.
  const double lost =
      static_cast<double>(rows_) * static_cast<double>(std::numeric_limits<T>::min());
  if (!std::isfinite(size)) return size;
  const double transforms =
      halves_.size() > 1 ? std::hypot(of_half(0, i), of_half(1, rows_ - 1 - i)) : of_half(0, i);
  const double absolute = lost * (peak + 1) + kWorstRow * transforms;
  return steady_loss_ + lost / sum + absolute / sum / size;
}

template <class T>
double HeadForward<T>::row_sum(index_t i) const {
  const double sum = halves_[0].row_sums[i];
  return halves_.size() > 1 ? sum + halves_[1].row_sums[rows_ - 1 - i] : sum;
}

template <class T>
Buffer<double> HeadForward<T>::inverse_sums() const {
  Buffer<double> inverse(rows_);
  for (index_t i = 0; i < rows_; ++i) {
    const double sum = row_sum(i);
    inverse[i] = sum > 0 ? 1 / sum : 0.0;
  }
  for (const index_t row : spoiled_) inverse[row] = 0;
  return inverse;
}

template <class T>
void HeadForward<T>::divide(const View<T, 2>& out, const View<T, 1>& lse) {
  constexpr index_t kRowsPerTask = 256;
  const index_t tasks = ceil_div(rows_, kRowsPerTask);
  std::vector<std::vector<index_t>> spoiled(static_cast<std::size_t>(tasks));
  std::vector<double> worst(static_cast<std::size_t>(tasks), 0.0);
  const std::vector<BlockRounding> rounding = estimate_rounding(nullptr, values_.norms);
  sizes_.resize(static_cast<std::size_t>(rows_));
  parallel_for(exec_, tasks, [&](index_t task, int) {
    const auto t = static_cast<std::size_t>(task);
    const index_t last = std::min((task + 1) * kRowsPerTask, rows_);
    for (index_t i = task * kRowsPerTask; i < last; ++i) {
      T* mean = halves_[0].numerator.row(i);
      const double sum = row_sum(i);
      if (halves_.size() > 1) {
        const T* other = halves_[1].numerator.row(rows_ - 1 - i);
        for (index_t c = 0; c < channels_; ++c) mean[c] += other[c];
      }
      const bool sees_keys = value_.shape[0] > 0;
      if (sees_keys) {
        if (sum > 0) kernels<T>().scale(mean, static_cast<T>(1 / sum), channels_);
        const auto at = static_cast<std::size_t>(i);
        sizes_[at] = kernels<T>().norm(mean, channels_) / std::sqrt(static_cast<double>(channels_));
        const double error =
            sum > 0 ? relative_rounding(i, rounding, static_cast<double>(peaks_[at]), sizes_[at])
                    : std::numeric_limits<double>::infinity();
        if (!(error <= kRoundingBudget<T>)) {
          spoiled[t].push_back(i);
          continue;
        }
        worst[t] = std::max(worst[t], error);
      }
      write_row(mean, out, i, values_.unscale);  // zeros when there is no key
      if (lse.data != nullptr)
        lse(i) = sees_keys ? static_cast<T>(std::log(sum) + static_cast<double>(shift_))
                           : -std::numeric_limits<T>::infinity();
    }
  });
  for (const auto& rows : spoiled) spoiled_.insert(spoiled_.end(), rows.begin(), rows.end());
  rounding_bound = *std::max_element(worst.begin(), worst.end());
}

template <class T>
void HeadForward<T>::judge_products(const Schedule* other) {
  if (rows_ == 0 || value_.shape[0] == 0) return;
  StageTimer timer(seconds.normalize);
  find_steady_loss(other);
  // Rows of ones stand for matrices that are not known.
  const std::vector<double> ones(values_.norms.size(), std::sqrt(static_cast<double>(channels_)));
  const auto of_ones = estimate_rounding(nullptr, ones);
  std::vector<BlockRounding> of_ones_there, of_values_there;
  if (other != nullptr) {
    of_ones_there = estimate_rounding(other, ones);
    of_values_there = estimate_rounding(other, values_.norms);
  }
  std::vector<index_t> rows;
  std::vector<double> lse;
  std::size_t known = 0;
  for (index_t i = 0; i < rows_; ++i) {
    if (known < spoiled_.size() && spoiled_[known] == i) {
      rows.push_back(i);
      lse.push_back(spoiled_lse_[known++]);
      continue;
    }
    const auto at = static_cast<std::size_t>(i);
    double error = relative_rounding(i, of_ones, 1, 1);
    if (other != nullptr) {
      const double of_values =
          relative_rounding(i, of_values_there, static_cast<double>(peaks_[at]), sizes_[at]);
      error = std::max({error, relative_rounding(i, of_ones_there, 1, 1), of_values});
    }
    if (error <= kRoundingBudget<T>) continue;
    rows.push_back(i);
    lse.push_back(std::log(row_sum(i)) + static_cast<double>(shift_));
  }
  spoiled_ = std::move(rows);
  spoiled_lse_ = std::move(lse);
  rows_exact = static_cast<index_t>(spoiled_.size());
}

#define CONVBASIS_INSTANTIATE(T)                                                           \
  template class HeadForward<T>;                                                           \
  template void attend_strips(const StripMatrix<T>&, const StripMatrix<T>*, Rows<const T>, \
                              index_t, std::span<const index_t>, Rows<T>, double*, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
