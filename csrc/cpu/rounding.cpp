#include <algorithm>
#include <cmath>
#include <limits>

#include "core/buffer.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

/// Euclidean norm of a run of norms.
double norm_of(std::span<const double> norms) {
  return kernels<double>().norm(norms.data(), static_cast<index_t>(norms.size()));
}

/// Norms of each strip's kernel over block lags l - 1 and l together, l = 1 .. blocks: what a
/// product at block lag l uses.
template <class T>
std::vector<std::vector<double>> window_norms(const StripMatrix<T>& matrix, index_t block,
                                              const Exec& exec) {
  const StripLayout& layout = matrix.layout;
  std::vector<std::vector<double>> pairs(static_cast<std::size_t>(layout.count()));
  parallel_for(exec, layout.count(), [&](index_t r, int) {
    const index_t lags = layout.rows - layout.begin(r), blocks = ceil_div(lags, block);
    std::vector<double> sizes(static_cast<std::size_t>(blocks) + 1, 0.0);
    for (index_t m = 0; m < blocks; ++m)
      sizes[static_cast<std::size_t>(m)] =
          kernels<T>().norm(matrix.kernels.row(r) + m * block, std::min(block, lags - m * block));
    for (std::size_t m = 0; m + 1 < sizes.size(); ++m)
      sizes[m] = std::hypot(sizes[m], sizes[m + 1]);
    pairs[static_cast<std::size_t>(r)] = std::move(sizes);
  });
  return pairs;
}

/// Root of the sum of squares of size(p) * window(p, b) over the pieces p that act on block b.
template <class T>
std::vector<double> products_of_blocks(const StripMatrix<T>& matrix, const Level& level,
                                       std::span<const double> norms, const Exec& exec) {
  const StripLayout& layout = matrix.layout;
  const Pieces pieces = cut_into_pieces(layout, level.block);
  const auto windows = window_norms(matrix, level.block, exec);
  const index_t blocks = ceil_div(layout.rows, level.block);
  const index_t per_span = level.span / level.block;
  std::vector<double> sizes;
  for (const Piece& piece : pieces.list)
    sizes.push_back(norm_of(norms.subspan(static_cast<std::size_t>(piece.begin),
                                          static_cast<std::size_t>(piece.end - piece.begin))));

  // Relative to the largest term of the block, squares neither overflow nor vanish.
  std::vector<double> top(static_cast<std::size_t>(blocks), 0.0), sum = top;
  const auto each_term = [&](const auto& visit) {
    for (std::size_t p = 0; p < pieces.list.size(); ++p) {
      const Piece& piece = pieces.list[p];
      const double* window = windows[static_cast<std::size_t>(piece.strip)].data();
      const index_t end = std::min((piece.block / per_span + 1) * per_span, blocks);
      for (index_t b = piece.block + 1; b < end; ++b)
        visit(static_cast<std::size_t>(b), sizes[p] * window[b - piece.block - 1]);
    }
  };
  each_term([&](std::size_t b, double term) { top[b] = std::max(top[b], term); });
  std::vector<double> inverse(top.size());
  for (std::size_t b = 0; b < top.size(); ++b)
    inverse[b] = top[b] >= std::numeric_limits<double>::min() ? 1 / top[b] : 0.0;
  each_term([&](std::size_t b, double term) {
    const double relative = term * inverse[b];
    sum[b] += relative * relative;
  });
  for (std::size_t b = 0; b < sum.size(); ++b) sum[b] = top[b] * std::sqrt(sum[b]);
  return sum;
}

}  // namespace

// An FFT product of a window w and a piece v errs by about eps * sqrt(log2 N) * |w| |v| / 8 in each
// output, whatever the size of that output. (By Parseval; measured errors were at most half of it.)
template <class T>
std::vector<double> rounding_of_blocks(const StripMatrix<T>& matrix, const Schedule& schedule,
                                       std::span<const double> norms, index_t channels,
                                       const Exec& exec) {
  const index_t small_blocks = ceil_div(matrix.layout.rows, schedule.diagonal);
  std::vector<double> rms(static_cast<std::size_t>(small_blocks), 0.0);
  const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) / 8;
  for (const Level& level : schedule.levels) {
    const std::vector<double> of_block = products_of_blocks(matrix, level, norms, exec);
    const double error = unit * std::sqrt(std::log2(2.0 * static_cast<double>(level.block)));
    const index_t ratio = level.block / schedule.diagonal;
    for (index_t b = 0; b < small_blocks; ++b) {
      double& sum = rms[static_cast<std::size_t>(b)];
      sum = std::hypot(sum, error * of_block[static_cast<std::size_t>(b / ratio)]);
    }
  }
  for (double& value : rms) value /= std::sqrt(static_cast<double>(channels));
  return rms;
}

template std::vector<double> rounding_of_blocks(const StripMatrix<float>&, const Schedule&,
                                                std::span<const double>, index_t, const Exec&);
template std::vector<double> rounding_of_blocks(const StripMatrix<double>&, const Schedule&,
                                                std::span<const double>, index_t, const Exec&);

}  // namespace convbasis
