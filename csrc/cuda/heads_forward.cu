#include <limits>

#include "core/buffer.h"
#include "cuda/heads_forward.h"
#include "cuda/levels.h"
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
// Of a product on tensor cores, 2^-17 and 3 * 2^-17: direct_half.cu.
constexpr double kBFloat16Loss = 64, kFloat16Loss = 192;

/// Divides rows of numerators by their sums, and flags those that rounding may have spoiled. Rows
/// of heads that are left out are not written.
template <class T>
struct Divide {
  static constexpr std::size_t kSharedBytes = sizeof(double) * kThreads;
  static constexpr int kLeastBlocks = 4;
  StripTable<T> weights;
  Array<T> numerator, out, lse;
  const double *sums, *errors, *errors_of_ones, *peaks;  // errors_of_ones: null, or judged too
  index_t
      upper;  // how far behind those of the lower triangle the upper one's errors are; 0: no such
  const T* shifts;
  double* exact_lse;  // or null
  std::int32_t* spoiled;
  index_t tiles, granules, keys;
  double steady_loss, lost;

  /// What rounding may have left in a product with rows up to `peak`, relative to `size`.
  [[nodiscard]] CONVBASIS_DEVICE bool is_too_coarse(double sum, double transforms, double peak,
                                                    double size) const {
    const double absolute = lost * (peak + 1) + kWorstRow * transforms;
    return !(is_finite(size) && steady_loss + (lost + absolute / size) / sum <= kRoundingBudget<T>);
  }
  /// Of the transforms of both triangles.
  [[nodiscard]] CONVBASIS_DEVICE double squared_error(const double* squares, index_t head,
                                                      index_t row) const {
    const double* mine = squares + head * granules;
    const index_t turned = out.rows - 1 - row;
    return mine[row / kErrorRows] + (upper > 0 ? mine[upper + turned / kErrorRows] : 0.0);
  }
  [[nodiscard]] CONVBASIS_DEVICE bool is_spoiled(index_t head, index_t row, double squares) const {
    const double sum = sums[head * out.rows + row], peak = peaks[head];
    if (!(sum > 0)) return true;
    if (errors_of_ones != nullptr &&
        is_too_coarse(sum, sqrt(squared_error(errors_of_ones, head, row)), 1, 1))
      return true;
    if (peak == 0) return false;
    const auto channels = static_cast<double>(out.channels);
    return is_too_coarse(sum, sqrt(squared_error(errors, head, row) / channels), peak,
                         sqrt(squares / channels) / sum);
  }

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* squares = reinterpret_cast<double*>(block.shared);
    const index_t head = block.index / tiles, first = block.index % tiles * kRows;
    const bool is_listed = weights.is_listed(head);
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
      if (row >= out.rows || !is_listed) return;
      const T factor = keys > 0 ? static_cast<T>(1 / sums[head * out.rows + row]) : T(0);
      for (index_t c = t % kLanes; c < out.channels; c += kLanes)
        out.store(head, row, c, factor * numerator.load(head, row, c));
    });
    block.each(kRows, [&](int r) {
      const index_t row = first + r;
      if (row >= out.rows) return;
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += squares[r * kLanes + lane];
      spoiled[head * out.rows + row] = is_listed && keys > 0 && is_spoiled(head, row, sum) ? 1 : 0;
      if (!is_listed) return;
      const double log_sum = log(sums[head * out.rows + row]) + static_cast<double>(shifts[head]);
      if (exact_lse != nullptr) exact_lse[head * out.rows + row] = log_sum;
      if (lse.data != nullptr)
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
double steady_loss(const Strips<T>& weights, const Schedule& schedule, Element element) {
  index_t terms = 0;
  for (const StripLayout& layout : weights.layouts) {
    index_t pieces = 0;
    for (const Level& level : schedule.levels)
      pieces = std::max(pieces, most_pieces(layout, level));
    terms = std::max(terms, pieces + std::min(schedule.diagonal, layout.rows));
  }
  double usual = kUsualLoss;
  if (element == Element::bfloat16) usual += kBFloat16Loss;
  if (element == Element::float16) usual += kFloat16Loss;
  return (usual + kSteadyLoss * static_cast<double>(terms)) *
         static_cast<double>(std::numeric_limits<T>::epsilon());
}

}  // namespace

template <class T>
HeadsForward<T> attend_heads(const Triangles<T>& logits, const Array<T>& value, const Array<T>& out,
                             const Array<T>& lse, bool for_backward, std::span<const Schedule> far,
                             const Stream& stream) {
  // Gradients go by the same schedule, with rows of T.
  const GpuModel model = model_for(for_backward ? Element::same : value.element);
  const StripTable<T>& table = logits.front().table;
  const auto all = static_cast<index_t>(logits.front().layouts.size());
  const index_t rows = table.rows, columns = table.columns, channels = out.channels;
  HeadsForward<T> forward{exponentiate(logits, stream),
                          {},
                          DeviceBuffer<double>(stream, all * rows),
                          {},
                          DeviceBuffer<double>(stream, all),
                          DeviceBuffer<std::int32_t>(stream, all * rows)};
  if (for_backward) forward.lse = DeviceBuffer<double>(stream, all * rows);
  const Triangles<T>& weights = forward.weights.triangles;

  // Of the lower triangle, then the upper one; first those of this product, then those of products
  // with rows of ones, which stand for matrices that are not known.
  const index_t granules = ceil_div(rows, kErrorRows), estimates = for_backward ? 2 : 1;
  const auto count = static_cast<index_t>(weights.size());
  const DeviceBuffer<double> errors(stream, estimates * count * all * granules);
  double* of_ones = for_backward ? errors.data() + count * all * granules : nullptr;
  fill_zero(stream, errors.data(), static_cast<std::size_t>(errors.size()) * sizeof(double));
  const DeviceBuffer<double> squares(stream, all * columns);

  const DeviceBuffer<T> memory(stream, count * all * rows * channels);
  const DeviceBuffer<double> upper_sums(stream, (count - 1) * all * rows);
  const Array<T> numerator = packed_array(memory.data(), all, rows, channels);
  double steady = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Strips<T>& triangle = weights[i];
    const Schedule& schedule = forward.schedules.emplace_back(
        choose_schedule(triangle.layouts, channels, static_cast<index_t>(sizeof(T)), model));
    const Array<T> x = rows_of_triangle(i, value);
    measure_rows(x, all, squares.data(), forward.peaks.data(), stream);
    const index_t before = static_cast<index_t>(i) * all * granules;
    const RoundingErrors rounding[] = {
        {squares.data(), columns, granules, errors.data() + before},
        {nullptr, columns, granules, for_backward ? of_ones + before : nullptr}};
    const Array<T> product = packed_array(
        memory.data() + static_cast<index_t>(i) * all * rows * channels, all, rows, channels);
    multiply_strips(triangle, schedule, false, x, product, model.workspace, stream,
                    {rounding, static_cast<std::size_t>(estimates)});
    double* sums = i == 0 ? forward.sums.data() : upper_sums.data();
    sum_rows(triangle, sums, stream);
    steady = std::max(steady, steady_loss(triangle, schedule, value.element));
    if (!far.empty()) {
      for (const Level& level : far[i].levels)
        add_level_rounding(triangle, level, model.workspace, rounding, stream);
      // Sums over its near entries are those of spoiled rows too: their loss is no reason to be
      // one.
      const Schedule beyond{far[i].levels, 0};
      steady = std::max(steady, steady_loss(triangle, beyond, Element::same));
    }
    if (i == 0) continue;
    add_array(all, reversed(product), numerator, stream);
    add_array(all, reversed(packed_array(sums, all, rows, 1)),
              packed_array(forward.sums.data(), all, rows, 1), stream);
  }

  const double lost =
      static_cast<double>(rows) * static_cast<double>(std::numeric_limits<T>::min());
  const index_t tiles = ceil_div(rows, kRows);
  using Kernel = Divide<T>;
  launch_blocks<kThreads>(
      stream, all * tiles, Kernel::kSharedBytes,
      Kernel{weights.front().table, numerator, out, lse, forward.sums.data(), errors.data(),
             of_ones, forward.peaks.data(), (count - 1) * all * granules,
             forward.weights.shifts.data(), forward.lse.data(), forward.spoiled.data(), tiles,
             granules, columns, steady, lost});
  attend_spoiled(logits, value, forward.spoiled.data(), out, lse, forward.lse.data(), stream);
  return forward;
}

void count_spoiled(const std::int32_t* spoiled, index_t rows, const View<index_t, 2>& counts,
                   const Stream& stream) {
  launch_blocks<kThreads>(stream, counts.size(), sizeof(index_t) * kThreads,
                          CountSpoiled{spoiled, rows, counts.shape[1], counts});
}

#define CONVBASIS_INSTANTIATE(T)                                                               \
  template HeadsForward<T> attend_heads(const Triangles<T>&, const Array<T>&, const Array<T>&, \
                                        const Array<T>&, bool, std::span<const Schedule>,      \
                                        const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
