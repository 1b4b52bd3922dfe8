#include "peaks.h"

#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/blas.h"
#include "cpu/simd/kernels.h"

namespace roofline {

FmaChains fma_chains_baseline();
#if defined(ROOFLINE_X86_BUILDS)
FmaChains fma_chains_avx2();
FmaChains fma_chains_avx512();
#endif

namespace {

constexpr int kRepeats = 25;  // the best of many: other programs may take a core meanwhile

/// The chains of the build that the library's kernels run in.
FmaChains fma_chains() {
#if defined(ROOFLINE_X86_BUILDS)
  const std::string_view build = convbasis::kernels<float>().name;
  if (build == "avx512") return fma_chains_avx512();
  if (build == "avx2") return fma_chains_avx2();
#endif
  return fma_chains_baseline();
}

/// Work a nanosecond, best of some repeats: every thread does work(thread), which returns how much
/// it was; the time is from the common start to the end of the last.
template <class Work>
double best_rate(int threads, const Work& work) {
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    std::vector<double> done(static_cast<std::size_t>(threads));
    std::chrono::steady_clock::time_point begin;
    std::barrier start(threads, [&]() noexcept { begin = std::chrono::steady_clock::now(); });
    {
      std::vector<std::jthread> team;
      for (int t = 0; t < threads; ++t)
        team.emplace_back([&, t] {
          start.arrive_and_wait();
          done[static_cast<std::size_t>(t)] = work(t);
        });
    }
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
    double total = 0;
    for (double part : done) total += part;
    best = std::max(best, total / spent.count());
  }
  return best;
}

/// Copies `bytes` in all, `rounds` times. Each thread has arrays of its own; the first repeat
/// touches them.
double copy_rate(int threads, long bytes, long rounds) {
  const auto share = static_cast<std::size_t>(bytes / threads);
  std::vector<std::unique_ptr<char[]>> from(static_cast<std::size_t>(threads)), to(from.size());
  return best_rate(threads, [&](int thread) {
    auto& source = from[static_cast<std::size_t>(thread)];
    auto& target = to[static_cast<std::size_t>(thread)];
    if (source == nullptr) {
      source = std::make_unique<char[]>(share);
      target = std::make_unique<char[]>(share);
    }
    for (long round = 0; round < rounds; ++round) {
      std::memcpy(target.get(), source.get(), share);
      asm volatile("" : : "r"(target.get()) : "memory");  // each copy counts
    }
    return 2.0 * static_cast<double>(share) * static_cast<double>(rounds);
  });
}

double sgemm_rate(int threads) {
  constexpr convbasis::index_t kSize = 1024;
  const std::vector<float> a(kSize * kSize, 0.5F), b(kSize * kSize, 0.25F);
  std::vector<std::vector<float>> c(static_cast<std::size_t>(threads));
  return best_rate(threads, [&](int thread) {
    auto& result = c[static_cast<std::size_t>(thread)];
    result.resize(kSize * kSize);
    convbasis::blas::multiply<float>(kSize, kSize, kSize, 1.0F, {a.data(), kSize},
                                     {b.data(), kSize}, 0.0F, {result.data(), kSize});
    return 2.0 * kSize * kSize * kSize;
  });
}

long cache_bytes(int name, long otherwise) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

}  // namespace

long l2_bytes() { return cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1L << 20); }
long last_level_bytes() { return cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32L << 20); }

Peaks measure_peaks(int threads) {
  constexpr long kSteps = 2'000'000;  // some 10 ms
  const FmaChains chains = fma_chains();
  Peaks peaks;
  peaks.fma_float = best_rate(threads, [&](int) { return chains.in_float(kSteps, 0.75F, 0.125F); });
  peaks.fma_double = best_rate(threads, [&](int) { return chains.in_double(kSteps, 0.75, 0.125); });
  peaks.sgemm = sgemm_rate(threads);
  peaks.memory_copy = copy_rate(threads, 4 * last_level_bytes(), 1);
  peaks.l2_copy = copy_rate(threads, threads * (l2_bytes() / 4), 2000);
  return peaks;
}

}  // namespace roofline
