#include "stage_work.h"

#include <algorithm>
#include <cmath>

namespace roofline {

using convbasis::index_t;
using convbasis::StageSeconds;

namespace {

constexpr double kReal = sizeof(float), kComplex = 2 * kReal;

double fft_flops(index_t length) {
  const auto n = static_cast<double>(length);
  return 5 * n * std::log2(n);
}

/// What there is to do in one level, whose blocks of `block` rows interact inside spans of `span`
/// rows. A piece is the part of a strip inside one block; the last block of a span has no later one
/// to give to, and the first none to take from.
struct LevelCounts {
  LevelCounts(const std::vector<index_t>& starts, index_t rows, index_t block, index_t span) {
    const index_t blocks = (rows + block - 1) / block, per_span = span / block;
    for (index_t b = 0; b < blocks; ++b) {
      const index_t span_end = std::min((b / per_span + 1) * per_span, blocks);
      const auto cuts = std::count_if(starts.begin(), starts.end(), [&](index_t start) {
        return start > b * block && start < (b + 1) * block;
      });
      const auto here = static_cast<double>(cuts + 1);
      if (b + 1 < span_end) pieces += here;
      if (b % per_span != 0) outputs += 1;
      pairs += here * static_cast<double>(span_end - 1 - b);
    }
    for (index_t start : starts)
      windows += static_cast<double>(std::min(per_span - 1, blocks - 1 - start / block));
  }
  double pieces = 0, outputs = 0, pairs = 0, windows = 0;
};

}  // namespace

std::vector<StageWork> work_of(const std::vector<index_t>& starts, index_t rows, index_t channels,
                               const std::vector<index_t>& block_lengths) {
  const auto n = static_cast<double>(rows), c = static_cast<double>(channels);
  const auto diagonal_rows = static_cast<double>(std::min(block_lengths.back(), rows));
  double entries = 0;  // of the kernels, down to the last row
  for (index_t start : starts) entries += static_cast<double>(rows - start);

  // One exp an entry, in place; its polynomial is not counted.
  StageWork exp{"exp", &StageSeconds::exp, 0, 2 * kReal * entries};
  StageWork transform{"transform", &StageSeconds::transform, 0, 0};
  StageWork products{"products", &StageSeconds::products, 0, 0};
  StageWork inverse{"inverse", &StageSeconds::inverse, 0, 0};
  // Every row with the earlier columns of its block, and itself: a multiply-add a channel.
  const StageWork diagonal{"diagonal", &StageSeconds::diagonal, n * (diagonal_rows + 1) / 2 * 2 * c,
                           3 * kReal * n * c};
  // Row sums add every kernel entry once; then one division a number.
  const StageWork normalize{"normalize", &StageSeconds::normalize, entries + n * c,
                            kReal * (entries + 2 * n * c)};

  const bool all_direct = block_lengths[0] >= rows;  // no level, only a diagonal block
  const std::vector<index_t> levels = all_direct ? std::vector<index_t>{} : block_lengths;
  index_t span = rows;
  for (index_t block : levels) {
    // A span that is not a multiple of the block is the sequence itself, cut short.
    const LevelCounts counts(starts, rows, block, (span + block - 1) / block * block);
    const auto frequencies = static_cast<double>(block);
    // One complex FFT of the block's length a channel of a piece or block, and a kernel window.
    // Real rows in and out, complex spectra between.
    transform.flops += (counts.pieces * c + counts.windows) * fft_flops(block);
    transform.bytes += kReal * n * c + kReal * 2 * frequencies * counts.windows +
                       kComplex * frequencies * (counts.pieces * c + counts.windows);
    products.flops += 8 * frequencies * counts.pairs * c;
    products.bytes +=
        kComplex * frequencies * ((counts.pieces + counts.outputs) * c + counts.windows);
    inverse.flops += counts.outputs * c * fft_flops(block);
    inverse.bytes += kComplex * frequencies * counts.outputs * c + 2 * kReal * n * c;
    span = block;
  }
  return {exp, transform, products, inverse, diagonal, normalize};
}

}  // namespace roofline
