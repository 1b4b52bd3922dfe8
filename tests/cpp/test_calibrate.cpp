#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "builds.h"
#include "check.h"
#include "convbasis/attention.h"
#include "convbasis/calibrate.h"
#include "convbasis/error.h"
#include "core/draws.h"
#include "cpu/far_fit.h"
#include "cpu/key_selection.h"

using namespace convbasis;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Query, key and value of some heads, random, and what attention of them gives.
template <class T>
struct Heads {
  Heads(index_t count, index_t n, index_t d = 8)
      : heads(count),
        rows(n),
        dim(d),
        query(random_numbers<T>(count * n * d, 1)),
        key(random_numbers<T>(count * n * d, 2)),
        value(random_numbers<T>(count * n * d, 3)) {}

  [[nodiscard]] View<const T, 4> view(const std::vector<T>& array) const {
    return contiguous_view<const T, 4>(array.data(), {1, heads, rows, dim});
  }
  [[nodiscard]] Calibration<T> calibrated(const CalibrateOptions& options, int threads = 1) const {
    return calibrate<T>(view(query), view(key), view(value), options, causal(), {threads});
  }
  [[nodiscard]] std::vector<T> attend(const Calibration<T>& calibration, int threads = 1) const {
    std::vector<T> out(value.size()), share(at(heads * rows));
    calibrated_attention<T>(view(query), view(key), view(value), calibration, write(out), {},
                            contiguous_view<T, 3>(share.data(), {1, heads, rows}), causal(), {},
                            {threads});
    return out;
  }
  [[nodiscard]] std::vector<T> exact() const {
    std::vector<T> out(value.size());
    exact_attention<T>(view(query), view(key), view(value), write(out), {}, causal());
    return out;
  }
  [[nodiscard]] View<T, 4> write(std::vector<T>& array) const {
    return contiguous_view<T, 4>(array.data(), {1, heads, rows, dim});
  }
  static AttentionOptions causal() {
    AttentionOptions options;
    options.is_causal = true;
    return options;
  }

  index_t heads, rows, dim;
  std::vector<T> query, key, value;
};

template <class T>
double largest_difference(const std::vector<T>& a, const std::vector<T>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

}  // namespace

TEST(calibrate_takes_short_heads_exactly) {
  for (const index_t n : {1, 2, 63, 64, 65, 130, 255, 256}) {
    const Heads<double> problem(2, n);
    CHECK_NEAR(largest_difference(problem.attend(problem.calibrated({})), problem.exact()), 0.0,
               1e-13);
  }
}
