#include <limits>

#include "core/buffer.h"
#include "core/shape.h"
#include "cuda/exp.h"
#include "cuda/normalize.h"
#include "cuda/numeric.h"
#include "cuda/spoiled_rows.h"
#include "cuda/toeplitz.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 8, kRows = kThreads / kLanes;

// The CPU's head_forward.cpp says where these come from.
template <class T>
constexpr double kRoundingBudget = sizeof(T) == 4 ? 1e-4 : 2.5e-12;
constexpr double kWorstRow = 8, kSteadyLoss = 0.15, kUsualLoss = 4;

/// Divides rows of numerators by their sums, and flags those that rounding may have spoiled.
template <class T>
struct Divide {
  static constexpr std::size_t kSharedBytes = sizeof(double) * kThreads;
  Array<T> numerator, out, lse;
  const double *sums, *errors, *peaks;
  const T* shifts;
  std::int32_t* spoiled;
  index_t tiles, granules, keys;
  double steady_loss, lost;

  [[nodiscard]] CONVBASIS_DEVICE bool is_spoiled(index_t head, index_t row, double squares) const {
    const double sum = sums[head * out.rows + row], peak = peaks[head];
    if (!(sum > 0)) return true;
    if (peak == 0) return false;
    const auto channels = static_cast<double>(out.channels);
    const double size = sqrt(squares / channels) / sum;
    const double transforms = sqrt(errors[head * granules + row / kErrorRows] / channels);
    const double absolute = lost * (peak + 1) + kWorstRow * transforms;
    return !(is_finite(size) && steady_loss + (lost + absolute / size) / sum <= kRoundingBudget<T>);
  }

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* squares = reinterpret_cast<double*>(block.shared);
    const index_t head = block.index / tiles, first = block.index % tiles * kRows;
    block.each(kThreads, [&](int t) {
      const index_t row = first + t / kLanes;
      double sum = 0;
      for (index_t c = t % kLanes; row < out.rows && c < out.channels; c += kLanes) {
        const auto value = static_cast<double>(numerator.load(head, row, c));
        sum += value * value;
      }
      squares[t] = sum;
    });
    block.each(kThreads, [&](int t) {
      const index_t row = first + t / kLanes;
      if (row >= out.rows) return;
      const T factor = keys > 0 ? static_cast<T>(1 / sums[head * out.rows + row]) : T(0);
      for (index_t c = t % kLanes; c < out.channels; c += kLanes)
        out.store(head, row, c, factor * numerator.load(head, row, c));
    });
    block.each(kRows, [&](int r) {
      const index_t row = first + r;
      if (row >= out.rows) return;
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += squares[r * kLanes + lane];
      spoiled[head * out.rows + row] = keys > 0 && is_spoiled(head, row, sum) ? 1 : 0;
      if (lse.data == nullptr) return;
      const double log_sum = log(sums[head * out.rows + row]) + static_cast<double>(shifts[head]);
      lse.store(head, row, 0, keys > 0 ? static_cast<T>(log_sum) : -static_cast<T>(INFINITY));
    });
  }
};

struct CountSpoiled {
  const std::int32_t* spoiled;
  index_t rows, heads;
  View<index_t, 2> counts;
  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<index_t*>(block.shared);
    block.each(kThreads, [&](int t) {
      index_t count = 0;
      for (index_t i = t; i < rows; i += kThreads) count += spoiled[block.index * rows + i];
      values[t] = count;
    });
    sum_all(block, values);
    block.each(1, [&](int) {
      counts
          .data[block.index / heads * counts.strides[0] + block.index % heads * counts.strides[1]] =
          values[0];
    });
  }
};

/// The relative loss of sums over columns and pieces, whatever the row.
template <class T>
double steady_loss(const Strips<T>& weights, const Schedule& schedule) {
  index_t terms = 0;
  for (const StripLayout& layout : weights.layouts) {
    index_t pieces = 0;
    for (const Level& level : schedule.levels)
      pieces = std::max(pieces, most_pieces(layout, level));
    terms = std::max(terms, pieces + std::min(schedule.diagonal, layout.rows));
  }
  return (kUsualLoss + kSteadyLoss * static_cast<double>(terms)) *
         static_cast<double>(std::numeric_limits<T>::epsilon());
}

template <class T>
void attend(const Strips<T>& logits, const Array<T>& value, const Array<T>& out,
            const Array<T>& lse, std::int32_t* spoiled, const Stream& stream) {
  const GpuModel model;
  const auto all = static_cast<index_t>(logits.layouts.size());
  const index_t rows = logits.table.rows, columns = logits.table.columns;
  const Weights<T> weights = exponentiate(logits, stream);
  const Schedule schedule =
      choose_schedule(weights.strips.layouts, out.channels, static_cast<index_t>(sizeof(T)), model);

  const index_t granules = ceil_div(rows, kErrorRows);
  const DeviceBuffer<double> errors(stream, all * granules), squares(stream, all * columns);
  const DeviceBuffer<double> peaks(stream, all), sums(stream, all * rows);
  fill_zero(stream, errors.data(), static_cast<std::size_t>(errors.size()) * sizeof(double));
  measure_rows(value, all, squares.data(), peaks.data(), stream);
  const RoundingErrors rounding{squares.data(), columns, granules, errors.data()};

  const DeviceBuffer<T> memory(stream, all * rows * out.channels);
  const Array<T> numerator =
      array_of(contiguous_view<T, 4>(memory.data(), {1, all, rows, out.channels}), all);
  multiply_strips(weights.strips, schedule, false, value, numerator, model.workspace, stream,
                  &rounding);
  sum_rows(weights.strips, sums.data(), stream);

  const double lost =
      static_cast<double>(rows) * static_cast<double>(std::numeric_limits<T>::min());
  const index_t tiles = ceil_div(rows, kRows);
  using Kernel = Divide<T>;
  launch_blocks<kThreads>(
      stream, all * tiles, Kernel::kSharedBytes,
      Kernel{numerator, out, lse, sums.data(), errors.data(), peaks.data(), weights.shifts.data(),
             spoiled, tiles, granules, columns, steady_loss(weights.strips, schedule), lost});
  attend_spoiled(logits, value, spoiled, out, lse, stream);
}

}  // namespace

template <class E>
void conv_attention(const BasisView<Compute<E>>& lower, View<const E, 4> value, View<E, 4> out,
                    View<Compute<E>, 3> lse, View<index_t, 2> rows_exact, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "conv_attention";
  const auto [batch, heads, most, n] = lower.kernels.shape;
  const View<const T, 4> value_shape{nullptr, value.shape, value.strides};
  require_operands<T>(kName, lower, nullptr, value_shape);
  require_shape(kName, "out", out.shape, {batch, heads, n, value.shape[3]},
                "to match basis and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, heads, n}, "to match the basis");
  if (rows_exact.data != nullptr)
    require_shape(kName, "rows_exact", rows_exact.shape, {batch, heads}, "to match the basis");
  if (batch * heads * n == 0) return;
  require_narrow(kName, batch * heads, most, n);

  const DeviceGuard guard(stream.device);
  const Strips<T> logits = strips_of_basis(lower, stream);
  const DeviceBuffer<std::int32_t> spoiled(stream, batch * heads * n);
  attend(logits, array_of(value, heads), array_of(out, heads), column_of(lse, heads),
         spoiled.data(), stream);
  if (rows_exact.data != nullptr)
    launch_blocks<kThreads>(stream, batch * heads, sizeof(index_t) * kThreads,
                            CountSpoiled{spoiled.data(), n, heads, rows_exact});
}

#define CONVBASIS_INSTANTIATE(E)                                                           \
  template void conv_attention(const BasisView<Compute<E>>&, View<const E, 4>, View<E, 4>, \
                               View<Compute<E>, 3>, View<index_t, 2>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
