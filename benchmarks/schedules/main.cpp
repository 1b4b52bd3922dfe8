// How near the schedule that the cost model picks is to the best of a sweep over fixed ones.
//
//   schedules [threads [n k]]  float, 64 channels; prints a Markdown table, or one row of it
//
// Times are minima over rounds in which all schedules of a problem take turns, so that what else
// the machine does meets them alike. The last row of a problem of n rows has n / 8 strips.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "cpu/strips.h"

using namespace convbasis;

namespace {

constexpr index_t kChannels = 64;
constexpr double kSecondsPerProblem = 20;
constexpr int kFewestRounds = 8, kMostRounds = 30;
constexpr double kHopeless = 1.4;  // times the best: not measured again, but for the chosen one

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string name(const Schedule& schedule) {
  std::string text;
  for (const Level& level : schedule.levels) {
    if (!text.empty()) text += ' ';
    text += std::to_string(level.block);
  }
  return text.empty() ? "direct" : text;
}

/// Schedules of up to three levels that are not hopeless: with direct tiles of at most 1,024 rows.
std::vector<Schedule> fixed_schedules(index_t rows) {
  index_t whole = 1;
  while (whole < rows) whole *= 2;
  std::vector<Schedule> all;
  if (whole <= 1024) all.push_back({{}, whole});
  for (index_t a = 32; a <= 8192 && 2 * a <= whole; a *= 2) {
    if (a <= 1024 && rows / a <= 1024) all.push_back({{{a, whole}}, a});
    for (index_t b = 32; b <= 512 && 4 * b <= a; b *= 2) {
      if (rows / a > 256) continue;
      all.push_back({{{a, whole}, {b, a}}, b});
      for (index_t c = 32; c <= 128 && 4 * c <= b && rows >= 65536; c *= 2)
        all.push_back({{{a, whole}, {b, a}, {c, b}}, c});
    }
  }
  return all;
}

struct Problem {
  Problem(index_t rows, index_t strips) : kernels(rows * strips), x(rows * kChannels) {
    matrix.layout.rows = matrix.layout.columns = rows;
    for (index_t r = 0; r < strips; ++r) matrix.layout.starts.push_back(r * rows / strips);
    for (index_t i = 0; i < kernels.size(); ++i)
      kernels[i] = 0.5F + 0.01F * static_cast<float>(i % 97);
    for (index_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.7F * static_cast<float>(i % 1009));
    matrix.kernels = {kernels.data(), rows};
  }

  double seconds(const Schedule& schedule, Buffer<float>& y, const Exec& exec) const {
    StageSeconds stages;
    const double begin = now();
    multiply_strips<float>(matrix, schedule, false, {x.data(), kChannels}, {y.data(), kChannels},
                           kChannels, exec, stages);
    return now() - begin;
  }

  StripMatrix<float> matrix;
  Buffer<float> kernels, x;
};

/// Prints a row; returns the time of the chosen schedule over the best one's.
double compare(index_t rows, index_t strips, const Exec& exec) {
  const Problem problem(rows, strips);
  Buffer<float> y(rows * kChannels);
  std::vector<Schedule> schedules = fixed_schedules(rows);
  const Schedule chosen = choose_schedule(problem.matrix.layout, kChannels, cost_model<float>());
  std::size_t mine = 0;
  while (mine < schedules.size() && name(schedules[mine]) != name(chosen)) ++mine;
  if (mine == schedules.size()) schedules.push_back(chosen);
  std::vector<double> times(schedules.size(), 1e30);
  const double begin = now();
  for (int round = 0; round < kMostRounds; ++round) {
    for (std::size_t s = 0; s < schedules.size(); ++s) {
      const double best = *std::min_element(times.begin(), times.end());
      if (round > 1 && times[s] > kHopeless * best && s != mine) continue;
      times[s] = std::min(times[s], problem.seconds(schedules[s], y, exec));
    }
    if (round >= kFewestRounds && now() - begin > kSecondsPerProblem) break;
  }
  const auto best = std::min_element(times.begin(), times.end());
  const double ratio = times[mine] / *best;
  std::printf("| %ld | %ld | %s | %.2f | %s | %.2f | %.2f |\n", static_cast<long>(rows),
              static_cast<long>(strips), name(chosen).c_str(), 1e3 * times[mine],
              name(schedules[static_cast<std::size_t>(best - times.begin())]).c_str(), 1e3 * *best,
              ratio);
  std::fflush(stdout);
  return ratio;
}

}  // namespace

int main(int argc, char** argv) {
  const Exec exec{argc > 1 ? std::atoi(argv[1]) : 0};
  std::printf("| n | k | chosen blocks | ms | best blocks | ms | chosen / best |\n");
  std::printf("|--:|--:|---|--:|---|--:|--:|\n");
  if (argc > 3) {
    (void)compare(std::atol(argv[2]), std::atol(argv[3]), exec);
    return EXIT_SUCCESS;
  }
  double worst = 0;
  for (index_t rows = 1024; rows <= 262144; rows *= 4) {
    std::vector<index_t> strips{1, 16};
    // Kernels of more than 512 MiB are left out.
    for (const index_t k : {rows / 64, rows / 8})
      if (k > strips.back() && k * rows <= (index_t{1} << 27)) strips.push_back(k);
    for (const index_t k : strips) worst = std::max(worst, compare(rows, k, exec));
  }
  std::printf("\nworst: %.2f\n", worst);
  return EXIT_SUCCESS;
}
