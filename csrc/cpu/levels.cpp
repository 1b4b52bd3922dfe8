#include "cpu/levels.h"

#include <algorithm>

namespace convbasis {

template <class T>
LevelRun<T>::LevelRun(const StripMatrix<T>& matrix, const Level& level, bool transpose,
                      const Exec& exec)
    : matrix_(matrix),
      level_(level),
      transpose_(transpose),
      exec_(exec),
      simd_(kernels<T>()),
      plan_(level.block),
      pieces_(cut_into_pieces(matrix.layout, level.block)),
      blocks_(ceil_div(matrix.layout.rows, level.block)),
      per_span_(level.span / level.block),
      spans_(ceil_div(blocks_, per_span_)) {
  for (index_t span = 0; span < spans_; ++span) {
    const Chunk chunk = chunk_of(span);
    most_spectra_ = std::max({most_spectra_, inputs(chunk), outputs(chunk)});
  }
  plan_weights();
  weights_ = Buffer<T>(2 * level_.block * weight_count_);
  scratch_ = Buffer<T>(resolve_threads(exec) * scratch_size());
}

/// One window for each strip and block lag 1, 2, ...; where each piece finds its own.
template <class T>
void LevelRun<T>::plan_weights() {
  const StripLayout& layout = matrix_.layout;
  std::vector<index_t> base(layout.starts.size());
  for (index_t r = 0; r < layout.count(); ++r) {
    base[static_cast<std::size_t>(r)] = static_cast<index_t>(windows_.size());
    const index_t lags = max_block_lag(layout, r, level_), count = layout.rows - layout.begin(r);
    for (index_t lag = 1; lag <= lags; ++lag) {
      const index_t first = (lag - 1) * level_.block;
      windows_.push_back({matrix_.kernels.row(r) + first, count - first});
    }
  }
  // Whole vectors of windows are transformed: the last one is filled up with empty windows. An odd
  // number of vectors, so that a transform, which goes from frequency to frequency, meets all sets
  // of a cache.
  while (static_cast<index_t>(windows_.size()) % (2 * simd_.lanes) != simd_.lanes)
    windows_.push_back({nullptr, 0});
  weight_count_ = static_cast<index_t>(windows_.size());
  for (const Piece& piece : pieces_.list) {
    offsets_.push_back(base[static_cast<std::size_t>(piece.strip)] - piece.block - 1);
    piece_blocks_.push_back(piece.block);
  }
}

template <class T>
void LevelRun<T>::prepare(StageSeconds& seconds) {
  StageTimer timer(seconds.transform);
  parallel_for(exec_, weight_count_ / simd_.lanes, [&](index_t item, int worker) {
    transform_windows(item * simd_.lanes, scratch(worker));
  });
}

template <class T>
void LevelRun<T>::transform_windows(index_t first, T* scratch) {
  T* re = weights_.data() + first;
  simd_.forward_windows(plan_.fft(), windows_.data() + first,
                        {re, re + weight_count_, 2 * weight_count_}, scratch);
}

template <class T>
typename LevelRun<T>::Chunk LevelRun<T>::chunk_of(index_t span) const {
  const index_t begin = span * per_span_;
  return {begin, std::min(begin + per_span_, blocks_)};
}

template <class T>
void LevelRun<T>::reserve(index_t workers) {
  spectra_ = Buffer<T>(workers * spectra_size());
}

template <class T>
void LevelRun<T>::apply(Rows<const T> x, Rows<T> y, index_t channels, StageSeconds& seconds) {
  const index_t vectors = channels / simd_.lanes, chunks = vectors * spans_;
  const index_t threads = resolve_threads(exec_);
  // Chunks side by side need no hand-over; a few of them for many threads are done one by one.
  const bool side_by_side = chunks % threads == 0 || chunks >= 4 * threads;
  const index_t copies = side_by_side ? std::min(threads, chunks) : 1;
  reserve(copies);
  std::vector<StageSeconds> of_copy(static_cast<std::size_t>(copies));
  const auto run = [&](index_t item, int worker) {
    Chunk chunk = chunk_of(item / vectors);
    chunk.channel = item % vectors * simd_.lanes;
    chunk.worker = worker;
    run_chunk(chunk, x, y, of_copy[static_cast<std::size_t>(worker)]);
  };
  if (side_by_side) {
    parallel_for(exec_, chunks, run);
  } else {
    for (index_t item = 0; item < chunks; ++item) run(item, 0);
  }
  for (const StageSeconds& part : of_copy) add_share(seconds, part, copies);
}

template <class T>
void LevelRun<T>::apply_inside(index_t first, index_t last, Rows<const T> x, Rows<T> y,
                               index_t channels, int worker, StageSeconds& seconds) {
  const index_t end = std::min(ceil_div(last, level_.span), spans_);
  for (index_t span = first / level_.span; span < end; ++span) {
    for (index_t channel = 0; channel < channels; channel += simd_.lanes) {
      Chunk chunk = chunk_of(span);
      chunk.channel = channel;
      chunk.worker = worker;
      run_chunk(chunk, x, y, seconds);
    }
  }
}

/// The loops run in parallel, or in order when this is one of several chunks side by side: then the
/// worker of each item is 0.
template <class T>
void LevelRun<T>::run_chunk(Chunk chunk, Rows<const T> x, Rows<T> y, StageSeconds& seconds) {
  if (inputs(chunk) == 0 || outputs(chunk) == 0) return;
  chunk.spectra = spectra_.data() + chunk.worker * spectra_size();
  {
    StageTimer timer(seconds.transform);
    parallel_for(exec_, inputs(chunk),
                 [&](index_t input, int) { transform_input(chunk, input, x); });
  }
  {
    StageTimer timer(seconds.products);
    parallel_for(exec_, level_.block / kPacked, [&](index_t task, int worker) {
      multiply_frequencies(chunk, task * kPacked, scratch(chunk.worker + worker));
    });
  }
  StageTimer timer(seconds.inverse);
  parallel_for(exec_, outputs(chunk), [&](index_t output, int) { invert(chunk, output, y); });
}

template <class T>
typename LevelRun<T>::Part LevelRun<T>::part_of_piece(index_t index) const {
  const Piece& piece = pieces_.list[static_cast<std::size_t>(index)];
  return {piece.begin, piece.begin - piece.block * level_.block, piece.end - piece.begin};
}

template <class T>
typename LevelRun<T>::Part LevelRun<T>::part_of_block(index_t block) const {
  const index_t begin = block * level_.block;
  return {begin, 0, std::min(level_.block, matrix_.layout.rows - begin)};
}

template <class T>
void LevelRun<T>::transform_input(const Chunk& chunk, index_t input, Rows<const T> x) {
  const Part part = transpose_ ? part_of_block(chunk.begin + 1 + input)
                               : part_of_piece(first_piece(chunk.begin) + input);
  simd_.forward_rows(plan_.fft(), {x.row(part.begin) + chunk.channel, x.stride}, part.offset,
                     part.count, chunk.spectra + input * stride());
}

template <class T>
void LevelRun<T>::multiply_frequencies(const Chunk& chunk, index_t first, T* packed) const {
  const T* weights = weights_.data() + first * 2 * weight_count_;
  const FrequencyProduct<T> product{weights,
                                    weights + weight_count_,
                                    2 * weight_count_,
                                    offsets_.data(),
                                    pieces_.first.data(),
                                    piece_blocks_.data(),
                                    chunk.spectra + first * point(),
                                    stride(),
                                    kPacked,
                                    packed};
  (transpose_ ? simd_.multiply_transposed : simd_.multiply)(product, chunk.begin, chunk.end);
}

template <class T>
void LevelRun<T>::invert(const Chunk& chunk, index_t output, Rows<T> y) {
  const Part part = transpose_ ? part_of_piece(first_piece(chunk.begin) + output)
                               : part_of_block(chunk.begin + 1 + output);
  simd_.inverse_rows(plan_.fft(), chunk.spectra + output * stride(), part.offset, part.count,
                     {y.row(part.begin) + chunk.channel, y.stride});
}

template class LevelRun<float>;
template class LevelRun<double>;

}  // namespace convbasis
