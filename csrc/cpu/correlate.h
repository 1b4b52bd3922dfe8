#pragma once

#include <vector>

#include "convbasis/report.h"
#include "core/buffer.h"
#include "core/schedule.h"
#include "core/thread_pool.h"
#include "cpu/fft_plan.h"

namespace convbasis {

/// out.row(r)[t] += sum over j in strip r of x[j] . y[j + t], for lags t in [0, rows - begin(r)):
/// the adjoint of multiply_strips in its kernels. x has layout.columns rows, y layout.rows, both
/// with `channels` contiguous padded channels. The same blocked schedule: diagonal blocks directly;
/// every level transforms pieces of x and blocks of y once, sums their products over channels in
/// the frequency domain, and makes one inverse for each strip and block lag.
template <class T>
void correlate_strips(const StripLayout& layout, const Schedule& schedule, Rows<const T> x,
                      Rows<const T> y, index_t channels, Rows<T> out, const Exec& exec,
                      StageSeconds& seconds);

/// What the pieces of one level have to do with the later blocks of their spans.
template <class T>
class LevelCorrelation {
 public:
  LevelCorrelation(const StripLayout& layout, const Level& level, const Exec& exec);

  /// Adds to `late` and `early`: neighbouring windows share lags, so each writes one array with its
  /// later and one with its earlier lags.
  void apply(Rows<const T> x, Rows<const T> y, index_t channels, Rows<T> late, Rows<T> early,
             StageSeconds& seconds);

 private:
  /// Pieces and blocks of a few neighbouring spans, as FrequencyCorrelation wants them.
  struct Chunk {
    index_t first_piece = 0, spectra = 0;
    std::vector<index_t> first, window, lags, position, reach, piece_spectra, block_spectra;
    std::vector<index_t> inputs, outputs;  // pieces and blocks that have a spectrum
  };
  void plan_windows();
  [[nodiscard]] Chunk chunk_of(index_t first_span, index_t last_span) const;
  void transform(const Chunk& chunk, Rows<const T> x, Rows<const T> y, index_t channel);
  void sum_products(const Chunk& chunk);
  void invert(Rows<T> late, Rows<T> early);
  [[nodiscard]] index_t point() const { return 2 * simd_.lanes; }
  [[nodiscard]] index_t stride() const { return (level_.block + kPacked) * point(); }

  static constexpr index_t kPacked = 4;           // frequencies whose products are taken together
  static constexpr index_t kChunkRows = 1 << 15;  // of the spans that are one chunk

  const StripLayout& layout_;
  Level level_;
  Exec exec_;
  const Kernels<T>& simd_;
  FftPlan<T> plan_;
  Pieces pieces_;
  index_t blocks_, per_span_;
  index_t window_count_ = 0;
  std::vector<index_t> windows_, lags_;  // of each strip: its first window, its block lags
  Buffer<T> sums_, spectra_;
};

}  // namespace convbasis
