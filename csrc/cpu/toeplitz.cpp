#include "convbasis/toeplitz.h"

#include <algorithm>

#include "core/buffer.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/levels.h"
#include "cpu/rows.h"
#include "cpu/strips.h"

namespace convbasis {
template <class T>
void multiply_strips(const StripMatrix<T>& matrix, const Schedule& schedule, bool transpose,
                     Rows<const T> x, Rows<T> y, index_t channels, const Exec& exec,
                     StageSeconds& seconds) {
  const StripLayout& layout = matrix.layout;
  const index_t outputs = transpose ? layout.columns : layout.rows;
  {
    StageTimer timer(seconds.diagonal);
    const auto multiply = transpose ? kernels<T>().direct_transposed : kernels<T>().direct;
    parallel_for(exec, ceil_div(layout.rows, schedule.diagonal), [&](index_t block, int) {
      const index_t first = block * schedule.diagonal;
      const index_t stop = std::min(first + schedule.diagonal, layout.rows);
      for (index_t i = first; i < std::min(stop, outputs); ++i)
        std::fill_n(y.row(i), channels, T(0));
      for (index_t r = 0; r < layout.count(); ++r) {
        const index_t begin = std::max(first, layout.begin(r));
        const index_t end = std::min(stop, layout.end(r));
        if (begin < end) multiply(matrix.kernels.row(r), begin, end, stop, x, y, channels);
      }
    });
  }
  if (layout.count() == 0) return;
  for (const Level& level : schedule.levels) {
    LevelRun<T> run(matrix, level, transpose, exec);
    run.prepare(seconds);
    run.apply(x, y, channels, seconds);
  }
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
  for_each_head(exec, batch * heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, unused] = head_index(flat, heads, heads);
    const StripMatrix<T> matrix = head_strips(basis, b, h);
    const Schedule schedule = choose_schedule(matrix.layout, padded, cost_model<T>());
    Buffer<T> packed;
    const Rows<const T> in = as_rows(head_view(x, b, h), padded, packed);
    Buffer<T> result(y.shape[2] * padded);
    StageSeconds seconds;
    multiply_strips(matrix, schedule, transpose, in, Rows<T>{result.data(), padded}, padded, inside,
                    seconds);
    const View<T, 2> target = head_view(y, b, h);
    for (index_t i = 0; i < y.shape[2]; ++i) write_row(result.data() + i * padded, target, i);
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
