// Where the time of conv_attention goes, against what this machine can do.
//
//   roofline [repeats]
//
// Measures the peaks of one thread and of all: multiply-adds in registers, SGEMM, copies in memory
// and in L2. Then runs conv_attention in float with a given basis, and prints for every stage its
// shortest time, its rate, and which peak it is near.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "convbasis/convbasis.h"
#include "core/thread_pool.h"
#include "cpu/simd/kernels.h"
#include "peaks.h"
#include "stage_work.h"

using namespace convbasis;

namespace {

constexpr index_t kStrips = 16, kChannels = 64;
constexpr double kNear = 0.5;  // from this share of a peak on, the peak is what limits

std::vector<float> random_numbers(index_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = normal(random);
  return numbers;
}

/// The shortest time of each stage, and the blocks.
ForwardReport best_of(int repeats, const BasisView<float>& basis, const std::vector<float>& value,
                      std::vector<float>& out, int threads) {
  const std::array<index_t, 4> shape{1, 1, basis.num_columns, kChannels};
  ForwardReport best;
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    const ForwardReport report = conv_attention<float>(
        basis, nullptr, contiguous_view<const float, 4>(value.data(), shape),
        contiguous_view<float, 4>(out.data(), shape), {}, {}, {threads, nullptr});
    if (repeat <= 1) best = report;  // the first one warms up
    for (auto stage : {&StageSeconds::exp, &StageSeconds::transform, &StageSeconds::products,
                       &StageSeconds::inverse, &StageSeconds::diagonal, &StageSeconds::normalize,
                       &StageSeconds::rows})
      best.seconds.*stage = std::min(best.seconds.*stage, report.seconds.*stage);
  }
  return best;
}

const char* limit(double arithmetic, double memory) {
  if (std::max(arithmetic, memory) < kNear) return "neither: latency, layout, caches";
  if (arithmetic > memory) return "arithmetic";
  return memory > 1 ? "caches: memory is slower" : "memory";
}

void print_stages(index_t n, int threads, int repeats, const roofline::Peaks& peaks) {
  std::vector<index_t> starts;
  for (index_t r = 0; r < kStrips; ++r) starts.push_back(r * n / kStrips);
  const std::vector<index_t> count{kStrips};
  const std::vector<float> kernels = random_numbers(kStrips * n);
  const std::vector<float> value = random_numbers(n * kChannels);
  std::vector<float> out(value.size());
  const BasisView<float> basis{contiguous_view<const index_t, 3>(starts.data(), {1, 1, kStrips}),
                               contiguous_view<const index_t, 2>(count.data(), {1, 1}),
                               contiguous_view<const float, 4>(kernels.data(), {1, 1, kStrips, n}),
                               n};

  const ForwardReport report = best_of(repeats, basis, value, out, threads);
  std::printf("\nn = %ld, k = %ld, d = %ld, float, threads %d, blocks", static_cast<long>(n),
              static_cast<long>(kStrips), static_cast<long>(kChannels), threads);
  for (index_t block : report.block_lengths) std::printf(" %ld", static_cast<long>(block));
  std::printf("\n\n| stage | ms | GF/s | of FMA peak | GB/s | of memory copy | limited by |\n");
  std::printf("|---|---|---|---|---|---|---|\n");
  double total = report.seconds.rows;
  for (const roofline::StageWork& work :
       roofline::work_of(starts, n, kChannels, report.block_lengths)) {
    const double seconds = report.seconds.*work.seconds;
    const double gflops = work.flops / seconds / 1e9, gbytes = work.bytes / seconds / 1e9;
    const double arithmetic = gflops / peaks.fma_float, memory = gbytes / peaks.memory_copy;
    std::printf("| %s | %.3f | %.1f | %.0f %% | %.1f | %.0f %% | %s |\n", work.name, 1e3 * seconds,
                gflops, 100 * arithmetic, gbytes, 100 * memory, limit(arithmetic, memory));
    total += seconds;
  }
  std::printf("| rows summed directly: %ld | %.3f | | | | | |\n| all | %.3f | | | | | |\n",
              static_cast<long>(report.rows_exact[0]), 1e3 * report.seconds.rows, 1e3 * total);
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 20;
  if (repeats < 1) {
    std::fprintf(stderr, "[roofline] repeats is %s; expected a number from 1 on\n", argv[1]);
    return 2;
  }
  const int all = resolve_threads({});
  std::vector<int> teams{1};
  if (all > 1) teams.push_back(all);
  std::printf("convbasis %s, %s build, L2 %ld KiB, last-level cache %ld MiB\n\n", CONVBASIS_VERSION,
              kernels<float>().name.data(), roofline::l2_bytes() >> 10,
              roofline::last_level_bytes() >> 20);
  std::printf(
      "| threads | FMA float GF/s | FMA double GF/s | SGEMM GF/s | memory copy GB/s "
      "| L2 copy GB/s |\n|---|---|---|---|---|---|\n");
  std::vector<roofline::Peaks> peaks;
  for (int threads : teams) {
    peaks.push_back(roofline::measure_peaks(threads));
    const roofline::Peaks& p = peaks.back();
    std::printf("| %d | %.1f | %.1f | %.1f | %.1f | %.1f |\n", threads, p.fma_float, p.fma_double,
                p.sgemm, p.memory_copy, p.l2_copy);
  }
  for (index_t n : {16384, 65536})
    for (std::size_t t = 0; t < teams.size(); ++t) print_stages(n, teams[t], repeats, peaks[t]);
}
