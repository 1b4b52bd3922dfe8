#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/strips.h"

namespace convbasis {
namespace {

constexpr index_t kLagsPerTask = 8192;

/// Columns that no strip covers: those before the first start.
bool has_uncovered_columns(const StripLayout& layout) {
  return layout.columns > 0 && (layout.count() == 0 || layout.begin(0) > 0);
}

}  // namespace

template <class T>
T largest_logit(const StripMatrix<T>& logits, bool skip_diagonal) {
  const StripLayout& layout = logits.layout;
  const index_t from = skip_diagonal ? 1 : 0;
  T top = has_uncovered_columns(layout) ? T(0) : -std::numeric_limits<T>::infinity();
  for (index_t r = 0; r < layout.count(); ++r) {
    const index_t lags = layout.rows - layout.begin(r);
    if (lags > from)
      top = std::max(top, kernels<T>().max_value(logits.kernels.row(r) + from, lags - from));
  }
  return top;
}

template <class T>
StripWeights<T> exponentiate(const StripMatrix<T>& logits, T shift, bool skip_diagonal,
                             const Exec& exec) {
  StripWeights<T> weights{logits, {}};
  StripLayout& layout = weights.matrix.layout;
  const index_t added = has_uncovered_columns(layout) ? 1 : 0;
  if (added > 0) layout.starts.insert(layout.starts.begin(), index_t{0});
  weights.kernels = Buffer<T>(layout.count() * layout.rows);
  weights.matrix.kernels = {weights.kernels.data(), layout.rows};

  const index_t tasks = ceil_div(layout.rows, kLagsPerTask);
  parallel_for(exec, layout.count() * tasks, [&](index_t item, int) {
    const index_t r = item / tasks, first = item % tasks * kLagsPerTask;
    const index_t last = std::min(first + kLagsPerTask, layout.rows - layout.begin(r));
    if (first >= last) return;
    T* to = weights.kernels.data() + r * layout.rows;
    if (r < added) {
      std::fill(to + first, to + last, std::exp(-shift));
    } else {
      kernels<T>().exp_shifted(logits.kernels.row(r - added) + first, shift, to + first,
                               last - first);
    }
    if (skip_diagonal && first == 0) to[0] = T(0);
  });
  return weights;
}

template float largest_logit(const StripMatrix<float>&, bool);
template double largest_logit(const StripMatrix<double>&, bool);
template StripWeights<float> exponentiate(const StripMatrix<float>&, float, bool, const Exec&);
template StripWeights<double> exponentiate(const StripMatrix<double>&, double, bool, const Exec&);

}  // namespace convbasis
