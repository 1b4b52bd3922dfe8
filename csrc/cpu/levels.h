#pragma once

#include <algorithm>
#include <vector>

#include "cpu/fft_plan.h"
#include "cpu/strips.h"

namespace convbasis {

/// One level of the blocked schedule: what the pieces of strips in one block give to the later
/// blocks of its span. The level below does the same inside a block.
template <class T>
class LevelRun {
 public:
  LevelRun(const StripMatrix<T>& matrix, const Level& level, bool transpose, const Exec& exec);

  /// The spectra of the kernels, which all channels share.
  void prepare(StageSeconds& seconds);

  /// y += the products of this level. A span and a vector of channels are one chunk of work: all
  /// its pieces are transformed once, the products summed frequency by frequency, and one inverse
  /// made for each block of outputs.
  void apply(Rows<const T> x, Rows<T> y, index_t channels, StageSeconds& seconds);

  /// Memory for calls of apply_inside by that many workers at once.
  void reserve(index_t workers);

  /// The same for the spans in rows [first, last) only, on the calling thread.
  void apply_inside(index_t first, index_t last, Rows<const T> x, Rows<T> y, index_t channels,
                    int worker, StageSeconds& seconds);

 private:
  /// Blocks [begin, end) of one span, one vector of channels, and the memory for their spectra: of
  /// inputs, then, frequency by frequency, of outputs.
  struct Chunk {
    index_t begin, end, channel = 0;
    int worker = 0;
    T* spectra = nullptr;
  };

  void plan_weights();
  void transform_windows(index_t first, T* scratch);
  void run_chunk(Chunk chunk, Rows<const T> x, Rows<T> y, StageSeconds& seconds);
  void transform_input(const Chunk& chunk, index_t input, Rows<const T> x);
  void multiply_frequencies(const Chunk& chunk, index_t first, T* packed) const;
  void invert(const Chunk& chunk, index_t output, Rows<T> y);

  /// Rows that a piece, or a block, takes part with.
  struct Part {
    index_t begin, offset, count;
  };
  [[nodiscard]] Part part_of_piece(index_t piece) const;
  [[nodiscard]] Part part_of_block(index_t block) const;
  [[nodiscard]] index_t first_piece(index_t block) const {
    return pieces_.first[static_cast<std::size_t>(block)];
  }
  [[nodiscard]] Chunk chunk_of(index_t span) const;
  [[nodiscard]] index_t spectra_size() const { return most_spectra_ * stride(); }
  /// Pieces that act on a later block of the span, and blocks that one acts on.
  [[nodiscard]] index_t pieces(const Chunk& chunk) const {
    return first_piece(chunk.end - 1) - first_piece(chunk.begin);
  }
  [[nodiscard]] index_t blocks(const Chunk& chunk) const { return chunk.end - chunk.begin - 1; }
  [[nodiscard]] index_t inputs(const Chunk& chunk) const {
    return transpose_ ? blocks(chunk) : pieces(chunk);
  }
  [[nodiscard]] index_t outputs(const Chunk& chunk) const {
    return transpose_ ? pieces(chunk) : blocks(chunk);
  }
  [[nodiscard]] index_t point() const { return 2 * simd_.lanes; }  // numbers of a complex vector
  /// From one spectrum to the next. What is packed together of many spectra meets all sets of a
  /// cache.
  [[nodiscard]] index_t stride() const { return (level_.block + kPacked) * point(); }
  [[nodiscard]] index_t scratch_size() const {
    return std::max(level_.block, kPacked * most_spectra_) * point();
  }
  [[nodiscard]] T* scratch(int worker) { return scratch_.data() + worker * scratch_size(); }

  static constexpr index_t kPacked = 4;  // frequencies whose products are taken together

  const StripMatrix<T>& matrix_;
  Level level_;
  bool transpose_;
  Exec exec_;
  const Kernels<T>& simd_;
  FftPlan<T> plan_;
  Pieces pieces_;
  index_t blocks_, per_span_, spans_;
  index_t most_spectra_ = 0;  // of a chunk
  index_t weight_count_ = 0;
  std::vector<index_t> offsets_, piece_blocks_;
  std::vector<Window<T>> windows_;
  Buffer<T> weights_, scratch_, spectra_;
};

}  // namespace convbasis
