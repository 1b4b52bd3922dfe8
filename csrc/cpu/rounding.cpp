#include <algorithm>
#include <cmath>
#include <limits>

#include "core/buffer.h"
#include "cpu/strips.h"

namespace convbasis {

// An FFT product of a window w and a piece v errs by about eps * sqrt(log2 N) * |w| |v| / 8 in each
// output, whatever the size of that output. (By Parseval; measured errors were at most half of it.)
template <class T>
std::vector<double> rounding_of_blocks(const StripMatrix<T>& matrix, const Schedule& schedule,
                                       Rows<const T> x, index_t channels, const Exec& exec) {
  const StripLayout& layout = matrix.layout;
  const Kernels<T>& simd = kernels<T>();
  const index_t small_blocks = ceil_div(layout.rows, schedule.diagonal);
  std::vector<double> rms(static_cast<std::size_t>(small_blocks), 0.0);
  for (const Level& level : schedule.levels) {
    const Pieces pieces = cut_into_pieces(layout, level.block);
    std::vector<double> size(pieces.list.size());
    parallel_for(exec, static_cast<index_t>(size.size()), [&](index_t item, int) {
      const auto p = static_cast<std::size_t>(item);
      for (index_t j = pieces.list[p].begin; j < pieces.list[p].end; ++j)
        size[p] = std::hypot(size[p], simd.norm(x.row(j), channels));
    });

    const index_t blocks = ceil_div(layout.rows, level.block);
    const index_t per_span = level.span / level.block, ratio = level.block / schedule.diagonal;
    // window[m] = |kernel over block lag m|; a product at block lag l uses lags l - 1 and l.
    std::vector<double> window(static_cast<std::size_t>(blocks) + 1);
    index_t strip = -1;
    const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) / 8;
    const double error = unit * std::sqrt(std::log2(2.0 * static_cast<double>(level.block)));
    std::vector<double> of_block(static_cast<std::size_t>(blocks), 0.0);
    for (std::size_t p = 0; p < pieces.list.size(); ++p) {
      const Piece& piece = pieces.list[p];
      if (piece.strip != strip) {
        strip = piece.strip;
        const index_t lags = layout.rows - layout.begin(strip);
        std::fill(window.begin(), window.end(), 0.0);
        for (index_t m = 0; m * level.block < lags; ++m)
          window[static_cast<std::size_t>(m)] =
              simd.norm(matrix.kernels.row(strip) + m * level.block,
                        std::min(level.block, lags - m * level.block));
      }
      const index_t end = std::min((piece.block / per_span + 1) * per_span, blocks);
      for (index_t b = piece.block + 1; b < end; ++b) {
        const auto lag = static_cast<std::size_t>(b - piece.block);
        double& sum = of_block[static_cast<std::size_t>(b)];
        sum = std::hypot(sum, size[p] * std::hypot(window[lag - 1], window[lag]));
      }
    }
    for (index_t b = 0; b < small_blocks; ++b) {
      double& sum = rms[static_cast<std::size_t>(b)];
      sum = std::hypot(sum, error * of_block[static_cast<std::size_t>(b / ratio)]);
    }
  }
  for (double& value : rms) value /= std::sqrt(static_cast<double>(channels));
  return rms;
}

template std::vector<double> rounding_of_blocks(const StripMatrix<float>&, const Schedule&,
                                                Rows<const float>, index_t, const Exec&);
template std::vector<double> rounding_of_blocks(const StripMatrix<double>&, const Schedule&,
                                                Rows<const double>, index_t, const Exec&);

}  // namespace convbasis
