#include "convbasis/cost_model.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "convbasis/attention.h"
#include "convbasis/error.h"
#include "core/shape.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

constexpr index_t kChannels = 64;

/// The least of some runs: what disturbs a run only lengthens it.
template <class Run>
double nanoseconds(int runs, const Run& run) {
  using Clock = std::chrono::steady_clock;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < runs; ++i) {
    const Clock::time_point begin = Clock::now();
    run();
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - begin).count());
  }
  return best;
}

template <class T>
Buffer<T> some_numbers(index_t count) {
  Buffer<T> numbers(count);
  for (index_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(0.5 + 0.01 * (i % 53));
  return numbers;
}

/// The steps of a schedule, from one strip over blocks of 128 rows: the measured stages over what
/// the model makes of them with every step 1.
template <class T>
CostModel measure_schedule() {
  constexpr index_t kRows = 4096, kBlock = 128;
  constexpr int kRuns = 8;
  const Buffer<T> kernel = some_numbers<T>(kRows), x = some_numbers<T>(kRows * kChannels);
  Buffer<T> y(kRows * kChannels);
  const StripMatrix<T> matrix{{kRows, kRows, {0}}, {kernel.data(), kRows}};
  const Schedule schedule{{{kBlock, kRows}}, kBlock};
  constexpr double kNever = std::numeric_limits<double>::infinity();
  CostModel best{kNever, kNever, kNever, kNever, kNever};
  for (int run = 0; run < kRuns; ++run) {
    StageSeconds seconds;
    multiply_strips<T>(matrix, schedule, false, {x.data(), kChannels}, {y.data(), kChannels},
                       kChannels, {1}, seconds);
    best.transform = std::min(best.transform, 1e9 * (seconds.transform + seconds.inverse));
    best.product = std::min(best.product, 1e9 * seconds.products);
    best.direct = std::min(best.direct, 1e9 * seconds.diagonal);
  }
  const StageCosts steps = stage_costs(matrix.layout, kChannels, schedule, {1, 1, 1, 1, 1});
  best.transform /= steps.transform + steps.inverse;
  best.product /= steps.products;
  best.direct /= steps.diagonal;
  return best;
}

template <class T>
double measure_exact() {
  constexpr index_t kRows = 384;
  const Buffer<T> q = some_numbers<T>(kRows * kChannels);
  Buffer<T> out(kRows * kChannels);
  const View<const T, 4> rows = contiguous_view<const T, 4>(q.data(), {1, 1, kRows, kChannels});
  const View<T, 4> result = contiguous_view<T, 4>(out.data(), {1, 1, kRows, kChannels});
  AttentionOptions options;
  options.scale = 0.001;
  const double whole =
      nanoseconds(3, [&] { exact_attention<T>(rows, rows, rows, result, {}, options, {}, {1}); });
  return whole / static_cast<double>(kRows * kRows * 2 * kChannels);
}

template <class T>
double measure_entry() {
  constexpr index_t kRows = 4096;
  const Buffer<T> kernel = some_numbers<T>(2 * kRows);
  const StripMatrix<T> matrix{{kRows, kRows, {0, kRows / 2}}, {kernel.data(), kRows}};
  Buffer<double> sums(kRows);
  const double whole = nanoseconds(5, [&] {
    const StripWeights<T> weights = exponentiate(matrix, T(1), false, {1});
    sum_rows(weights.matrix, {1}, sums.data());
  });
  return whole / static_cast<double>(kRows + kRows / 2);
}

/// To steps of 2^(1/16): what differs less from one process to the next is noise.
double rounded(double time) { return std::exp2(std::round(16 * std::log2(time)) / 16); }

template <class T>
CostModel measure() {
  CostModel model = measure_schedule<T>();
  model.exact = measure_exact<T>();
  model.entry = measure_entry<T>();
  for (const auto step : {&CostModel::transform, &CostModel::product, &CostModel::direct,
                          &CostModel::exact, &CostModel::entry})
    model.*step = rounded(model.*step);
  return model;
}

/// Models that were in force, the newest first. Readers take no lock, so neither a fork nor a
/// thread that waits for something else can stop them; old ones stay, for somebody may be reading
/// them.
struct Known {
  CostModel model;
  const Known* before;
};
template <class T>
std::atomic<const Known*> newest{nullptr};

}  // namespace

template <class T>
CostModel cost_model() {
  const Known* known = newest<T>.load(std::memory_order_acquire);
  if (known == nullptr) {
    // Two threads may both measure: the first one to finish decides.
    std::unique_ptr<const Known> mine(new Known{measure<T>(), nullptr});
    if (newest<T>.compare_exchange_strong(known, mine.get(), std::memory_order_acq_rel))
      known = mine.release();
  }
  return known->model;
}

template <class T>
void set_cost_model(const CostModel& model) {
  for (const double time : {model.transform, model.product, model.direct, model.exact, model.entry})
    require(time > 0 && std::isfinite(time), "set_cost_model",
            "model holds " + std::to_string(time) + "; expected positive finite nanoseconds");
  std::unique_ptr<Known> mine(new Known{model, newest<T>.load(std::memory_order_acquire)});
  while (!newest<T>.compare_exchange_weak(mine->before, mine.get(), std::memory_order_acq_rel)) {
  }
  (void)mine.release();
}

template <class T>
index_t break_even(index_t seq, index_t head_dim, index_t value_dim) {
  return break_even(seq, head_dim, value_dim, cost_model<T>());
}

#define CONVBASIS_INSTANTIATE(T)                     \
  template CostModel cost_model<T>();                \
  template void set_cost_model<T>(const CostModel&); \
  template index_t break_even<T>(index_t, index_t, index_t);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
