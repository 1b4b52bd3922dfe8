#include "convbasis/toeplitz.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/levels.h"
#include "cpu/rows.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

/// What happens inside the blocks of the outermost level, or everything when there is none: rows of
/// the output begin at 0, diagonal blocks are summed directly, the inner levels follow while the
/// rows are in the cache.
template <class T>
class Inside {
 public:
  Inside(const StripMatrix<T>& matrix, const Schedule& schedule, bool transpose, Rows<const T> x,
         Rows<T> y, index_t channels)
      : matrix_(matrix),
        diagonal_(schedule.diagonal),
        transpose_(transpose),
        x_(x),
        y_(y),
        channels_(channels) {}

  /// Blocks of the diagonal in rows [first, last).
  void sum_directly(index_t first, index_t last, StageSeconds& seconds) const {
    StageTimer timer(seconds.diagonal);
    const StripLayout& layout = matrix_.layout;
    const index_t outputs = transpose_ ? layout.columns : layout.rows;
    const auto multiply = transpose_ ? kernels<T>().direct_transposed : kernels<T>().direct;
    for (index_t block = first; block < last; block += diagonal_) {
      const index_t stop = std::min(block + diagonal_, last);
      for (index_t i = block; i < std::min(stop, outputs); ++i)
        std::fill_n(y_.row(i), channels_, T(0));
      for (index_t r = 0; r < layout.count(); ++r) {
        const index_t begin = std::max(block, layout.begin(r));
        const index_t end = std::min(stop, layout.end(r));
        if (begin < end) multiply(matrix_.kernels.row(r), begin, end, stop, x_, y_, channels_);
      }
    }
  }

  /// The diagonal, then the inner levels, part after part of `part` rows.
  void run(std::vector<std::unique_ptr<LevelRun<T>>>& levels, index_t part, const Exec& exec,
           StageSeconds& seconds) const {
    const index_t rows = matrix_.layout.rows, parts = ceil_div(rows, part);
    const index_t workers = std::min<index_t>(resolve_threads(exec), parts);
    for (auto& level : levels) level->reserve(workers);
    std::vector<StageSeconds> of_worker(static_cast<std::size_t>(workers));
    parallel_for(exec, parts, [&](index_t item, int worker) {
      StageSeconds& mine = of_worker[static_cast<std::size_t>(worker)];
      const index_t first = item * part, last = std::min(first + part, rows);
      sum_directly(first, last, mine);
      for (auto& level : levels) level->apply_inside(first, last, x_, y_, channels_, worker, mine);
    });
    for (const StageSeconds& mine : of_worker) add_share(seconds, mine, workers);
  }

 private:
  const StripMatrix<T>& matrix_;
  index_t diagonal_;
  bool transpose_;
  Rows<const T> x_;
  Rows<T> y_;
  index_t channels_;
};

}  // namespace

template <class T>
void multiply_strips(const StripMatrix<T>& matrix, const Schedule& schedule, bool transpose,
                     Rows<const T> x, Rows<T> y, index_t channels, const Exec& exec,
                     StageSeconds& seconds) {
  std::vector<std::unique_ptr<LevelRun<T>>> inner;
  std::unique_ptr<LevelRun<T>> outermost;
  for (const Level& level : schedule.levels) {
    if (matrix.layout.count() == 0) break;
    auto run = std::make_unique<LevelRun<T>>(matrix, level, transpose, exec);
    run->prepare(seconds);
    if (outermost == nullptr) {
      outermost = std::move(run);
    } else {
      inner.push_back(std::move(run));
    }
  }
  // Whole blocks of the outermost level, or of the diagonal where nothing is between the two.
  const index_t part = inner.empty() ? schedule.diagonal : schedule.levels.front().block;
  Inside<T>(matrix, schedule, transpose, x, y, channels).run(inner, part, exec, seconds);
  if (outermost != nullptr) outermost->apply(x, y, channels, seconds);
}

template <class T>
void conv_matmul(const BasisView<T>& basis, View<const T, 4> x, View<T, 4> y, bool transpose,
                 const Exec& exec) {
  constexpr const char* kName = "conv_matmul";
  require_basis(kName, basis);
  const auto [batch, heads, k, n] = basis.kernels.shape;
  const index_t columns = basis.num_columns, channels = x.shape[3];
  require_shape(kName, "x", x.shape, {batch, heads, transpose ? n : columns, channels},
                "to match the basis");
  require_shape(kName, "y", y.shape, {batch, heads, transpose ? columns : n, channels},
                "to match the basis");
  if (y.empty()) return;

  const index_t lanes = kernels<T>().lanes, padded = round_up(channels, lanes);
  const CostModel model = cost_model<T>();
  for_each_head({resolve_threads(exec), exec.interrupt}, batch * heads,
                [&](index_t flat, const Exec& inside) {
                  const auto [b, h, unused] = head_index(flat, heads, heads);
                  const StripMatrix<T> matrix = head_strips(basis, b, h);
                  const Schedule schedule = choose_schedule(matrix.layout, padded, model);
                  Buffer<T> packed;
                  const Rows<const T> in = as_rows(head_view(x, b, h), padded, packed);
                  Buffer<T> result(y.shape[2] * padded);
                  StageSeconds seconds;
                  multiply_strips(matrix, schedule, transpose, in, Rows<T>{result.data(), padded},
                                  padded, inside, seconds);
                  const View<T, 2> target = head_view(y, b, h);
                  for (index_t i = 0; i < y.shape[2]; ++i)
                    write_row(result.data() + i * padded, target, i);
                });
}

#define CONVBASIS_INSTANTIATE(T)                                                             \
  template void multiply_strips(const StripMatrix<T>&, const Schedule&, bool, Rows<const T>, \
                                Rows<T>, index_t, const Exec&, StageSeconds&);               \
  template void conv_matmul(const BasisView<T>&, View<const T, 4>, View<T, 4>, bool, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
