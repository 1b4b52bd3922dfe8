// convbasis_gpu_benchmark [largest n]: times of products and of attention through a given basis on
// GPU 0, 32 heads of 128 channels, with the error of sampled rows beside them, and the fewest
// bytes that each has to move.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

#include "convbasis/device.h"
#include "cuda/buffer.h"
#include "cuda/gpu_schedule.h"

namespace convbasis::cuda {
namespace {

constexpr index_t kHeads = 32, kChannels = 128, kStrips = 16;
constexpr index_t kRandom = index_t{1} << 20;  // numbers that arrays repeat
const Stream kStream{};

std::vector<float> random_numbers(double spread) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal(0, spread);
  std::vector<float> numbers(kRandom);
  for (float& number : numbers) number = static_cast<float>(normal(random));
  return numbers;
}

DeviceBuffer<float> repeated(const std::vector<float>& numbers, index_t count) {
  DeviceBuffer<float> memory(kStream, count);
  for (index_t first = 0; first < count; first += kRandom)
    copy(kStream, memory.data() + first, numbers.data(),
         static_cast<std::size_t>(std::min(kRandom, count - first)) * sizeof(float));
  synchronize(kStream);
  return memory;
}

/// Strips of equal widths in every head, logits of spread 1, values of spread 1.
struct Problem {
  explicit Problem(index_t n)
      : rows(n),
        logits(random_numbers(1)),
        kernels(repeated(logits, kHeads * kStrips * n)),
        value(repeated(logits, kHeads * n * kChannels)),
        out(kStream, kHeads * n * kChannels) {
    for (index_t head = 0; head < kHeads; ++head)
      for (index_t r = 0; r < kStrips; ++r) starts.push_back(r * n / kStrips);
    counts.assign(kHeads, kStrips);
  }
  [[nodiscard]] BasisView<float> basis() const {
    return {contiguous_view<const index_t, 3>(starts.data(), {1, kHeads, kStrips}),
            contiguous_view<const index_t, 2>(counts.data(), {1, kHeads}),
            contiguous_view<const float, 4>(kernels.data(), {1, kHeads, kStrips, rows}), rows};
  }
  [[nodiscard]] View<const float, 4> in() const {
    return contiguous_view<const float, 4>(value.data(), {1, kHeads, rows, kChannels});
  }
  [[nodiscard]] View<float, 4> to() const {
    return contiguous_view<float, 4>(out.data(), {1, kHeads, rows, kChannels});
  }
  void multiply() const { conv_matmul<float>(basis(), in(), to(), false, kStream); }
  void attend() const { conv_attention<float>(basis(), nullptr, in(), to(), {}, {}, {}, kStream); }

  /// Largest |error| of channel 0 of sampled rows of the last head, relative to |weights| |value|.
  [[nodiscard]] double error(bool attention) const {
    double worst = 0;
    for (index_t sample = 1; sample <= 8; ++sample) {
      const index_t row = sample * rows / 8 - 1;
      double sum = 0, total = 0, size = 0;
      for (index_t j = 0, r = 0; j <= row; ++j) {
        while (r + 1 < kStrips && starts[static_cast<std::size_t>(r + 1)] <= j) ++r;
        const index_t at = ((kHeads - 1) * kStrips + r) * rows + row - j;
        const double logit = logits[static_cast<std::size_t>(at % kRandom)];
        const index_t of_value = ((kHeads - 1) * rows + j) * kChannels;
        const double weight = attention ? std::exp(logit) : logit;
        const double term = weight * logits[static_cast<std::size_t>(of_value % kRandom)];
        sum += term;
        size += std::abs(term);
        total += weight;
      }
      float got = 0;
      copy(kStream, &got, out.data() + ((kHeads - 1) * rows + row) * kChannels, sizeof(float));
      synchronize(kStream);
      const double scale = attention ? total : 1;
      worst = std::max(worst, std::abs(static_cast<double>(got) - sum / scale) * scale / size);
    }
    return worst;
  }

  index_t rows;
  std::vector<float> logits;
  std::vector<index_t> starts, counts;
  DeviceBuffer<float> kernels, value, out;
};

/// Median of some runs, each waited for.
template <class Run>
double milliseconds(const Run& run) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t kWarm = 2, kRuns = 7;
  std::vector<double> times;
  for (std::size_t i = 0; i < kWarm + kRuns; ++i) {
    const Clock::time_point begin = Clock::now();
    run();
    synchronize(kStream);
    if (i >= kWarm)
      times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }
  std::sort(times.begin(), times.end());
  return times[kRuns / 2];
}

void print_row(const Problem& problem, bool attention) {
  const double time = milliseconds([&] { attention ? problem.attend() : problem.multiply(); });
  const auto numbers =
      static_cast<double>(kHeads * problem.rows * (2 * kChannels + kStrips));  // in, out, kernels
  const std::vector<StripLayout> layouts(
      kHeads,
      {problem.rows, problem.rows, {problem.starts.begin(), problem.starts.begin() + kStrips}});
  const GpuModel model;
  const Schedule schedule = choose_schedule(layouts, kChannels, sizeof(float), model);
  const double estimate = schedule_cost(layouts, kChannels, sizeof(float), schedule, model) / 1e6;
  std::printf("%-14s %8lld %9.3f %9.3f %10.1f %10.1e  ",
              attention ? "conv_attention" : "conv_matmul", static_cast<long long>(problem.rows),
              time, estimate, numbers * 4 / time / 1e6, problem.error(attention));
  for (const Level& level : schedule.levels)
    std::printf("%lld, ", static_cast<long long>(level.block));
  std::printf("direct %lld\n", static_cast<long long>(schedule.diagonal));
}

}  // namespace
}  // namespace convbasis::cuda

int main(int argc, char** argv) {
  using namespace convbasis::cuda;
  if (!convbasis::cuda_available()) {
    std::printf("skipped: %s\n", why_unavailable().c_str());
    return EXIT_SUCCESS;
  }
  const long long largest = argc > 1 ? std::atoll(argv[1]) : 131072;
  try {
    std::printf("%s, float32, 32 heads, 128 channels, 16 strips\n", device_info(0).name.c_str());
    std::printf("%-14s %8s %9s %9s %10s %10s  %s\n", "stage", "n", "ms", "modelled", "min. GB/s",
                "error", "blocks");
    for (const long long n : {1024, 4096, 16384, 65536, 131072}) {
      if (n > largest) continue;
      const Problem problem(n);
      for (const bool attention : {false, true}) print_row(problem, attention);
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
