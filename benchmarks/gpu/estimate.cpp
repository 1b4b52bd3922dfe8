// convbasis_gpu_estimate [n] [strips]: bytes of device memory and FLOP of each stage of causal
// attention through strips on a GPU, 32 heads of 128 channels, and the milliseconds that the
// model of gpu_schedule.h gives them. Needs no GPU.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "cuda/gpu_schedule.h"

namespace convbasis::cuda {
namespace {

constexpr double kHeads = 32, kChannels = 128, kWindow = 16;
constexpr double kFlash = 600e3;  // FLOP in a nanosecond of exact attention at its best

class Table {
 public:
  explicit Table(Element element)
      : element_(element == Element::same ? 4 : 2), model_(model_for(element)) {
    std::printf("%-32s %9s %9s %9s\n", "stage", "GB", "GFLOP", "ms");
  }
  void print(const std::string& stage, double bytes, double flops, double time) {
    total_ += time;
    std::printf("%-32s %9.2f %9.1f %9.2f\n", stage.c_str(), bytes / 1e9, flops / 1e9, time / 1e6);
  }
  void add(const std::string& stage, double bytes, double flops = 0) {
    print(stage, bytes, flops, bytes / model_.bytes + flops / model_.flops);
  }

  /// Everything before the products, each number of `rows` rows of `channels` named by its bytes.
  void add_recovery(double n, double strips) {
    const double rows = kHeads * n * kChannels, lags = kHeads * strips * n;
    add("search: columns' heads", rows * element_ + 3 * 4 * kHeads * n * kWindow,
        2 * rows * kWindow);
    const double packed = element_ == 4 ? 0 : 2 * 4 * rows;
    add("recover: kernels", rows * element_ + packed + 3 * 4 * lags, 2 * rows * strips);
    add("exp", 3 * 4 * lags);
    add("normalize: row sums", 2 * 4 * lags + 8 * kHeads * n);
    add("rounding: rows of values", rows * element_);
  }
  /// Their times sum to the schedule's cost.
  void add_products(const std::vector<StripLayout>& layouts, const Schedule& schedule) {
    const DirectWork direct = direct_work(layouts, kChannels, 4, schedule.diagonal);
    const Schedule tiles{{}, schedule.diagonal};
    print("direct tiles of " + std::to_string(schedule.diagonal), direct.bytes, direct.flops,
          schedule_cost(layouts, static_cast<index_t>(kChannels), 4, tiles, model_));
    for (const Level& level : schedule.levels) {
      const LevelWork work = level_work(layouts, kChannels, 4, level);
      const std::string blocks = "blocks of " + std::to_string(level.block) + ": ";
      const double before = total_;
      add(blocks + "kernels' spectra", work.windows);
      add(blocks + "gather", work.gather);
      add(blocks + "transforms", work.transforms);
      add(blocks + "products", work.products, work.flops);
      add(blocks + "add", work.outputs);
      print(blocks + "launches", 0, 0,
            level_cost(layouts, kChannels, 4, level, model_) - (total_ - before));
    }
  }
  void add_division(double n) {
    add("normalize: divide", kHeads * n * kChannels * (4 + element_) + 8 * kHeads * n);
  }
  void finish(double n) const {
    const double flash = 2 * kHeads * n * n * kChannels / kFlash;
    std::printf("%-32s %29.2f\n%-32s %29.2f\n", "all of it", total_ / 1e6, "exact at 600 TFLOP/s",
                flash / 1e6);
  }

 private:
  double element_, total_ = 0;
  GpuModel model_;
};

}  // namespace
}  // namespace convbasis::cuda

int main(int argc, char** argv) {
  using namespace convbasis;
  using namespace convbasis::cuda;
  const index_t n = argc > 1 ? std::atoll(argv[1]) : 131072;
  const index_t strips = argc > 2 ? std::atoll(argv[2]) : 16;
  if (n < 1 || strips < 1 || strips > n) {
    std::fprintf(stderr, "usage: convbasis_gpu_estimate [n] [strips], 1 <= strips <= n\n");
    return 2;
  }
  std::vector<StripLayout> layouts(static_cast<std::size_t>(kHeads), {n, n, {}});
  for (StripLayout& layout : layouts)
    for (index_t r = 0; r < strips; ++r) layout.starts.push_back(r * n / strips);
  for (const Element element : {Element::bfloat16, Element::same}) {
    std::printf("%s, n = %lld, %lld strips\n", element == Element::same ? "float32" : "bfloat16",
                static_cast<long long>(n), static_cast<long long>(strips));
    Table table(element);
    table.add_recovery(static_cast<double>(n), static_cast<double>(strips));
    table.add_products(
        layouts, choose_schedule(layouts, static_cast<index_t>(kChannels), 4, model_for(element)));
    table.add_division(static_cast<double>(n));
    table.finish(static_cast<double>(n));
  }
  return 0;
}
