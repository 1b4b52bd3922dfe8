#include <algorithm>
#include <cmath>
#include <limits>

#include "convbasis/attention.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/rows.h"
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

/// Listed rows summed one by one from the logits of the strips, with a softmax of their own: O(n d)
/// a row. write(r, mean, lse) takes the result of row rows[r].
template <class T, class Write>
void attend_strips(const StripMatrix<T>& lower, const StripMatrix<T>* upper, Rows<const T> value,
                   index_t channels, std::span<const index_t> rows, const Exec& exec,
                   const Write& write) {
  const index_t count = static_cast<index_t>(rows.size());
  parallel_for(exec, ceil_div(count, kQueryTile), [&](index_t tile, int) {
    const index_t first = tile * kQueryTile;
    const auto mine = rows.subspan(static_cast<std::size_t>(first),
                                   static_cast<std::size_t>(std::min(kQueryTile, count - first)));
    StripScores<T> scores(lower, upper);
    OnlineSoftmax<T> softmax(channels);
    Buffer<T> result(kQueryTile * channels);
    double lse[kQueryTile];
    softmax.attend(scores, value, lower.layout.columns, upper == nullptr, mine,
                   {result.data(), channels}, lse);
    for (index_t r = 0; r < static_cast<index_t>(mine.size()); ++r)
      write(static_cast<std::size_t>(first + r), result.data() + r * channels, lse[r]);
  });
}

/// One triangle of the attention matrix of one head: logits and, after exp, weights.
template <class T>
struct Half {
  StripMatrix<T> logits;
  StripWeights<T> weights;
  Schedule schedule;
  Buffer<T> memory;
  Rows<T> numerator;
  Buffer<double> row_sums;
  std::vector<double> rounding;
};

/// out: where the numerator may be formed, if it has a place for each channel.
template <class T>
void run_half(Half<T>& half, const View<T, 2>& out, Rows<const T> value,
              std::span<const double> norms, index_t channels, const CostModel& model,
              const Exec& exec, StageSeconds& seconds) {
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
  half.rounding = rounding_of_blocks(weights, half.schedule, norms, channels, exec);
}

/// One head: both halves, the division, and the rows that rounding spoiled.
template <class T>
class HeadForward {
 public:
  HeadForward(const StripMatrix<T>& lower, const StripMatrix<T>* upper,
              const View<const T, 2>& value, const CostModel& model, const Exec& exec)
      : value_(value),
        model_(model),
        exec_(exec),
        rows_(lower.layout.rows),
        value_dim_(value.shape[1]),
        channels_(round_up(value.shape[1], kernels<T>().lanes)),
        values_(as_value_rows(value, channels_, value_copy_, exec)) {
    halves_.resize(upper != nullptr ? 2 : 1);
    halves_[0].logits = lower;
    if (upper != nullptr) halves_[1].logits = *upper;
  }

  void run(const View<T, 2>& out, const View<T, 1>& lse) {
    if (rows_ == 0) return;
    {
      StageTimer timer(seconds.exp);
      shift_ = largest_logit(halves_[0].logits, false);
      if (halves_.size() > 1) shift_ = std::max(shift_, largest_logit(halves_[1].logits, true));
      if (!std::isfinite(shift_)) shift_ = T(0);  // no key at all
      for (std::size_t i = 0; i < halves_.size(); ++i)
        halves_[i].weights = exponentiate(halves_[i].logits, shift_, i > 0, exec_);
    }
    run_half(halves_[0], out, values_.rows, values_.norms, channels_, model_, exec_, seconds);
    if (halves_.size() > 1) {
      const Rows<const T> reversed{values_.rows.row(rows_ - 1), -values_.rows.stride};
      const std::vector<double> norms(values_.norms.rbegin(), values_.norms.rend());
      run_half(halves_[1], {}, reversed, norms, channels_, model_, exec_, seconds);
    }
    std::vector<index_t> spoiled;
    {
      StageTimer timer(seconds.normalize);
      find_peaks();
      find_steady_loss();
      spoiled = divide(out, lse);
    }
    StageTimer timer(seconds.rows);
    attend_strips(halves_[0].logits, halves_.size() > 1 ? &halves_[1].logits : nullptr,
                  values_.rows, channels_, spoiled, exec_,
                  [&](std::size_t r, const T* mean, double row_lse) {
                    write_row(mean, out, spoiled[r], values_.unscale);
                    if (lse.data != nullptr) lse(spoiled[r]) = static_cast<T>(row_lse);
                  });
    rows_exact = static_cast<index_t>(spoiled.size());
  }

  [[nodiscard]] const Schedule& schedule() const { return halves_[0].schedule; }

  StageSeconds seconds;
  index_t rows_exact = 0;
  double rounding_bound = 0;

 private:
  void find_steady_loss() {
    index_t terms = 0;
    for (const Half<T>& half : halves_)
      for (const Level& level : half.schedule.levels)
        terms = std::max(terms, most_pieces(half.weights.matrix.layout, level));
    steady_loss_ = (kUsualLoss + kSteadyLoss * static_cast<double>(terms)) *
                   static_cast<double>(std::numeric_limits<T>::epsilon());
  }

  void find_peaks() {
    peaks_.assign(static_cast<std::size_t>(rows_), T(0));
    T peak = 0;
    for (index_t j = 0; j < std::min(rows_, value_.shape[0]); ++j) {
      peak = std::max(peak, values_.peaks[static_cast<std::size_t>(j)]);
      peaks_[static_cast<std::size_t>(j)] = peak;
    }
    for (index_t i = value_.shape[0]; i < rows_; ++i) peaks_[static_cast<std::size_t>(i)] = peak;
    if (halves_.size() > 1) std::fill(peaks_.begin(), peaks_.end(), peak);
  }

  /// Absolute error that rounding may have left in row i, from the estimates of its blocks.
  [[nodiscard]] double rounding_of_row(index_t i) const {
    const auto of_half = [&](std::size_t half, index_t row) {
      const index_t block = row / halves_[half].schedule.diagonal;
      return halves_[half].rounding[static_cast<std::size_t>(block)];
    };
    return halves_.size() > 1 ? std::hypot(of_half(0, i), of_half(1, rows_ - 1 - i))
                              : of_half(0, i);
  }

  /// The same relative to the mean of the row.
  [[nodiscard]] double relative_rounding(index_t i, double sum, const T* mean) const {
    const auto peak = static_cast<double>(peaks_[static_cast<std::size_t>(i)]);
    if (peak == 0) return 0;
    // Weights and products that underflow are lost: at most one smallest normal number a key.
    const double lost =
        static_cast<double>(rows_) * static_cast<double>(std::numeric_limits<T>::min());
    const double size =
        kernels<T>().norm(mean, channels_) / std::sqrt(static_cast<double>(channels_));
    if (!std::isfinite(size)) return size;
    const double absolute = lost * (peak + 1) + kWorstRow * rounding_of_row(i);
    return steady_loss_ + lost / sum + absolute / sum / size;
  }

  std::vector<index_t> divide(const View<T, 2>& out, const View<T, 1>& lse) {
    constexpr index_t kRowsPerTask = 256;
    const index_t tasks = ceil_div(rows_, kRowsPerTask);
    std::vector<std::vector<index_t>> spoiled(static_cast<std::size_t>(tasks));
    std::vector<double> worst(static_cast<std::size_t>(tasks), 0.0);
    parallel_for(exec_, tasks, [&](index_t task, int) {
      const auto t = static_cast<std::size_t>(task);
      const index_t last = std::min((task + 1) * kRowsPerTask, rows_);
      for (index_t i = task * kRowsPerTask; i < last; ++i) {
        T* mean = halves_[0].numerator.row(i);
        double sum = halves_[0].row_sums[i];
        if (halves_.size() > 1) {
          const T* other = halves_[1].numerator.row(rows_ - 1 - i);
          for (index_t c = 0; c < channels_; ++c) mean[c] += other[c];
          sum += halves_[1].row_sums[rows_ - 1 - i];
        }
        const bool sees_keys = value_.shape[0] > 0;
        if (sees_keys) {
          if (sum > 0) kernels<T>().scale(mean, static_cast<T>(1 / sum), channels_);
          const double error =
              sum > 0 ? relative_rounding(i, sum, mean) : std::numeric_limits<double>::infinity();
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
    std::vector<index_t> all;
    for (const auto& rows : spoiled) all.insert(all.end(), rows.begin(), rows.end());
    rounding_bound = *std::max_element(worst.begin(), worst.end());
    return all;
  }

  View<const T, 2> value_;
  CostModel model_;
  Exec exec_;
  index_t rows_, value_dim_, channels_;
  Buffer<T> value_copy_;
  ValueRows<T> values_;
  std::vector<T> peaks_;    // largest |value| that each row sees
  double steady_loss_ = 0;  // relative, of sums over the pieces of a span
  T shift_ = 0;
  std::vector<Half<T>> halves_;
};

template <class T>
void require_operands(const char* name, const BasisView<T>& lower, const BasisView<T>* upper,
                      const View<const T, 4>& value) {
  require_basis(name, lower);
  const auto [batch, heads, k, n] = lower.kernels.shape;
  if (upper != nullptr) {
    require_basis(name, *upper);
    require_shape(name, "upper.kernels", upper->kernels.shape,
                  {batch, heads, upper->kernels.shape[2], n}, "to match lower.kernels");
    require(lower.num_columns == n && upper->num_columns == n, name,
            "num_columns is " + std::to_string(lower.num_columns) + " and " +
                std::to_string(upper->num_columns) + "; expected n = " + std::to_string(n) +
                " of both without a causal mask");
  }
  require_groups(name, heads, value.shape[1]);
  require_shape(name, "value", value.shape,
                {batch, value.shape[1], lower.num_columns, value.shape[3]}, "to match the basis");
}

}  // namespace

template <class T>
ForwardReport conv_attention(const BasisView<T>& lower, const BasisView<T>* upper,
                             View<const T, 4> value, View<T, 4> out, View<T, 3> lse,
                             std::span<const index_t> heads, const Exec& exec) {
  constexpr const char* kName = "conv_attention";
  require_operands(kName, lower, upper, value);
  const auto [batch, query_heads, k, n] = lower.kernels.shape;
  const index_t kv_heads = value.shape[1], dim = value.shape[3];
  require_shape(kName, "out", out.shape, {batch, query_heads, n, dim}, "to match basis and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match the basis");
  const HeadList list(kName, heads, batch * query_heads);

  ForwardReport report;
  report.rows_exact.assign(static_cast<std::size_t>(batch * query_heads), 0);
  report.rounding_bound.assign(static_cast<std::size_t>(batch * query_heads), 0.0);
  if (batch * query_heads * n == 0) return report;
  std::vector<StageSeconds> seconds(static_cast<std::size_t>(list.size()));
  const CostModel model = cost_model<T>();
  const Exec fixed{resolve_threads(exec), exec.interrupt};
  for_each_head(fixed, list.size(), [&](index_t i, const Exec& inside) {
    const index_t flat = list[i];
    const auto [b, h, g] = head_index(flat, query_heads, kv_heads);
    const StripMatrix<T> lower_half = head_strips(lower, b, h);
    StripMatrix<T> upper_half;
    if (upper != nullptr) upper_half = head_strips(*upper, b, h);
    HeadForward<T> head(lower_half, upper != nullptr ? &upper_half : nullptr,
                        head_view(value, b, g), model, inside);
    View<T, 1> lse_row;
    if (lse.data != nullptr) lse_row = {&lse(b, h, 0), {n}, {lse.strides[2]}};
    head.run(head_view(out, b, h), lse_row);
    report.rows_exact[static_cast<std::size_t>(flat)] = head.rows_exact;
    report.rounding_bound[static_cast<std::size_t>(flat)] = head.rounding_bound;
    seconds[static_cast<std::size_t>(i)] = head.seconds;
    if (i == 0) {
      for (const Level& level : head.schedule().levels) report.block_lengths.push_back(level.block);
      if (head.schedule().levels.empty()) report.block_lengths.push_back(head.schedule().diagonal);
    }
  });
  for (const StageSeconds& part : seconds) add_share(report.seconds, part, 1);
  return report;
}

template <class T>
void conv_attention_rows(const BasisView<T>& lower, const BasisView<T>* upper,
                         View<const T, 4> value, View<const index_t, 3> rows, View<T, 4> out,
                         std::span<const index_t> heads, const Exec& exec) {
  constexpr const char* kName = "conv_attention_rows";
  require_operands(kName, lower, upper, value);
  const auto [batch, query_heads, k, n] = lower.kernels.shape;
  const index_t kv_heads = value.shape[1], dim = value.shape[3], count = rows.shape[2];
  require_shape(kName, "rows", rows.shape, {batch, query_heads, count}, "to match the basis");
  require_rows(kName, rows, n);
  require_shape(kName, "out", out.shape, {batch, query_heads, count, dim},
                "to match rows and value");
  const HeadList list(kName, heads, batch * query_heads);
  if (batch * query_heads * n == 0) return;
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const auto [b, h, g] = head_index(list[i], query_heads, kv_heads);
    const std::vector<index_t> listed = listed_rows(rows, b, h);
    const StripMatrix<T> lower_half = head_strips(lower, b, h);
    StripMatrix<T> upper_half;
    if (upper != nullptr) upper_half = head_strips(*upper, b, h);
    Buffer<T> value_copy;
    const ValueRows<T> values = as_value_rows(head_view(value, b, g), dim, value_copy, inside);
    attend_strips(lower_half, upper != nullptr ? &upper_half : nullptr, values.rows, dim, listed,
                  inside, [&](std::size_t r, const T* mean, double) {
                    write_row(mean, head_view(out, b, h), static_cast<index_t>(r), values.unscale);
                  });
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template ForwardReport conv_attention(const BasisView<T>&, const BasisView<T>*,                 \
                                        View<const T, 4>, View<T, 4>, View<T, 3>,                 \
                                        std::span<const index_t>, const Exec&);                   \
  template void conv_attention_rows(const BasisView<T>&, const BasisView<T>*, View<const T, 4>,   \
                                    View<const index_t, 3>, View<T, 4>, std::span<const index_t>, \
                                    const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
