#pragma once

#include <span>

#include "convbasis/basis.h"
#include "convbasis/report.h"
#include "core/basis.h"
#include "core/buffer.h"
#include "core/schedule.h"
#include "core/thread_pool.h"
#include "cpu/simd/kernels.h"

namespace convbasis {

/// One head's matrix: kernel r holds lags 0 .. layout.rows - layout.begin(r) - 1.
template <class T>
struct StripMatrix {
  StripLayout layout;
  Rows<const T> kernels;
};

/// Strips of one head of a basis, without the padding.
template <class T>
[[nodiscard]] StripMatrix<T> head_strips(const BasisView<T>& basis, index_t batch, index_t head);

/// Largest logit, with the zeros of columns that no strip covers; -inf when there is none.
template <class T>
[[nodiscard]] T largest_logit(const StripMatrix<T>& logits, bool skip_diagonal);

/// exp of a matrix of logits, with the kernels it owns.
template <class T>
struct StripWeights {
  StripMatrix<T> matrix;
  Buffer<T> kernels;
};

/// exp(logits - shift), one kernel after another. Columns before the first start have logit 0, so
/// they become a strip of their own; skip_diagonal gives lag 0 the weight 0.
template <class T>
[[nodiscard]] StripWeights<T> exponentiate(const StripMatrix<T>& logits, T shift,
                                           bool skip_diagonal, const Exec& exec);

/// y = A x (or A^T x): x has layout.columns rows (layout.rows), y has layout.rows (layout.columns),
/// both with `channels` contiguous padded channels. The blocked schedule: blocks on the diagonal
/// are summed directly, so no FFT maps a later input to an earlier output; every level transforms
/// the pieces of x once, sums products in the frequency domain and makes one inverse an output
/// block.
template <class T>
void multiply_strips(const StripMatrix<T>& matrix, const Schedule& schedule, bool transpose,
                     Rows<const T> x, Rows<T> y, index_t channels, const Exec& exec,
                     StageSeconds& seconds);

/// Row sums by windowed prefix sums: no subtraction, so nothing cancels. sums has layout.rows
/// items.
template <class T>
void sum_rows(const StripMatrix<T>& matrix, const Exec& exec, double* sums);

/// Estimated absolute error that FFTs leave in each output row, as root mean square over channels:
/// one number for each block of schedule.diagonal rows. norms: of each input row.
template <class T>
[[nodiscard]] std::vector<double> rounding_of_blocks(const StripMatrix<T>& matrix,
                                                     const Schedule& schedule,
                                                     std::span<const double> norms,
                                                     index_t channels, const Exec& exec);

/// Adds what one of `workers` side by side measured: their share of the wall-clock time.
void add_share(StageSeconds& total, const StageSeconds& part, index_t workers);

/// Adds the wall-clock time of a scope to a stage.
class StageTimer {
 public:
  explicit StageTimer(double& total);
  ~StageTimer();
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  double& total_;
  double begin_;
};

}  // namespace convbasis
