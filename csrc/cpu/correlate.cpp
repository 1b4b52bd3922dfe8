#include "cpu/correlate.h"

#include <algorithm>

#include "cpu/strips.h"

namespace convbasis {

template <class T>
LevelCorrelation<T>::LevelCorrelation(const StripLayout& layout, const Level& level,
                                      const Exec& exec)
    : layout_(layout),
      level_(level),
      exec_(exec),
      simd_(kernels<T>()),
      plan_(level.block),
      pieces_(cut_into_pieces(layout, level.block)),
      blocks_(ceil_div(layout.rows, level.block)),
      per_span_(level.span / level.block) {
  plan_windows();
}

template <class T>
void LevelCorrelation<T>::plan_windows() {
  const index_t together = std::max<index_t>(simd_.lanes / 2, 1);
  for (index_t r = 0; r < layout_.count(); ++r) {
    windows_.push_back(window_count_);
    lags_.push_back(max_block_lag(layout_, r, level_));
    window_count_ += round_up(lags_.back(), together);
  }
  // An odd number of vectors, so that what goes from frequency to frequency meets all sets of a
  // cache.
  window_count_ = round_up(window_count_, simd_.lanes);
  if (window_count_ % (2 * simd_.lanes) == 0) window_count_ += simd_.lanes;
}

template <class T>
typename LevelCorrelation<T>::Chunk LevelCorrelation<T>::chunk_of(index_t first_span,
                                                                  index_t last_span) const {
  const index_t begin = first_span * per_span_, end = std::min(last_span * per_span_, blocks_);
  const index_t padding = std::max<index_t>(simd_.lanes / 2, 1);
  Chunk chunk;
  chunk.first_piece = pieces_.first[static_cast<std::size_t>(begin)];
  const index_t last_piece = pieces_.first[static_cast<std::size_t>(end)];
  std::vector<index_t> position_of_block;
  for (index_t b = begin; b < end; ++b) {
    position_of_block.push_back(static_cast<index_t>(chunk.block_spectra.size()));
    const bool is_first = b % per_span_ == 0, is_last = (b + 1) % per_span_ == 0 || b + 1 == end;
    if (!is_first) chunk.outputs.push_back(b);
    chunk.block_spectra.push_back(is_first ? -1 : chunk.spectra++);
    if (is_last) chunk.block_spectra.insert(chunk.block_spectra.end(), padding, -1);
  }
  for (index_t s = chunk.first_piece; s < last_piece; ++s) {
    const Piece& piece = pieces_.list[static_cast<std::size_t>(s)];
    const auto r = static_cast<std::size_t>(piece.strip);
    if (s == chunk.first_piece ||
        pieces_.list[static_cast<std::size_t>(s) - 1].strip != piece.strip) {
      chunk.first.push_back(s - chunk.first_piece);
      chunk.window.push_back(windows_[r]);
      chunk.lags.push_back(lags_[r]);
    }
    const index_t span_end = std::min((piece.block / per_span_ + 1) * per_span_, end);
    const index_t reach = span_end - 1 - piece.block;
    chunk.position.push_back(position_of_block[static_cast<std::size_t>(piece.block - begin)]);
    chunk.reach.push_back(reach);
    if (reach > 0) chunk.inputs.push_back(s);
    chunk.piece_spectra.push_back(reach > 0 ? chunk.spectra++ : -1);
  }
  chunk.first.push_back(last_piece - chunk.first_piece);
  return chunk;
}

template <class T>
void LevelCorrelation<T>::apply(Rows<const T> x, Rows<const T> y, index_t channels, Rows<T> late,
                                Rows<T> early, StageSeconds& seconds) {
  const index_t spans = ceil_div(blocks_, per_span_);
  const index_t together = std::max<index_t>(kChunkRows / level_.span, 1);
  sums_ = Buffer<T>(2 * level_.block * window_count_);
  parallel_for(exec_, level_.block, [&](index_t f, int) {
    std::fill_n(sums_.data() + 2 * f * window_count_, 2 * window_count_, T(0));
  });
  for (index_t span = 0; span < spans; span += together) {
    const Chunk chunk = chunk_of(span, std::min(span + together, spans));
    if (chunk.inputs.empty()) continue;
    spectra_ = Buffer<T>(chunk.spectra * stride());
    for (index_t channel = 0; channel < channels; channel += simd_.lanes) {
      {
        StageTimer timer(seconds.transform);
        transform(chunk, x, y, channel);
      }
      StageTimer timer(seconds.products);
      sum_products(chunk);
    }
  }
  StageTimer timer(seconds.inverse);
  invert(late, early);
}

template <class T>
void LevelCorrelation<T>::transform(const Chunk& chunk, Rows<const T> x, Rows<const T> y,
                                    index_t channel) {
  const auto inputs = static_cast<index_t>(chunk.inputs.size());
  const auto all = inputs + static_cast<index_t>(chunk.outputs.size());
  parallel_for(exec_, all, [&](index_t item, int) {
    if (item < inputs) {
      const index_t s = chunk.inputs[static_cast<std::size_t>(item)];
      const Piece& piece = pieces_.list[static_cast<std::size_t>(s)];
      const index_t spectrum = chunk.piece_spectra[static_cast<std::size_t>(s - chunk.first_piece)];
      simd_.forward_rows(plan_.fft(), {x.row(piece.begin) + channel, x.stride},
                         piece.begin - piece.block * level_.block, piece.end - piece.begin,
                         spectra_.data() + spectrum * stride());
    } else {
      // Blocks have the first spectra, in their order.
      const index_t at = item - inputs;
      const index_t begin = chunk.outputs[static_cast<std::size_t>(at)] * level_.block;
      simd_.forward_rows(plan_.fft(), {y.row(begin) + channel, y.stride}, 0,
                         std::min(level_.block, layout_.rows - begin),
                         spectra_.data() + at * stride());
    }
  });
}

template <class T>
void LevelCorrelation<T>::sum_products(const Chunk& chunk) {
  const auto pieces = static_cast<index_t>(chunk.position.size());
  const auto blocks = static_cast<index_t>(chunk.block_spectra.size());
  const index_t scratch_size = kPacked * (pieces + blocks) * point();
  Buffer<T> scratch(resolve_threads(exec_) * scratch_size);
  parallel_for(exec_, level_.block / kPacked, [&](index_t item, int worker) {
    const index_t f = item * kPacked;
    T* sums = sums_.data() + 2 * f * window_count_;
    simd_.correlate({static_cast<index_t>(chunk.window.size()),
                     chunk.first.data(),
                     chunk.window.data(),
                     chunk.lags.data(),
                     pieces,
                     chunk.position.data(),
                     chunk.reach.data(),
                     blocks,
                     spectra_.data() + f * point(),
                     stride(),
                     chunk.piece_spectra.data(),
                     chunk.block_spectra.data(),
                     kPacked,
                     scratch.data() + worker * scratch_size,
                     {sums, sums + window_count_, 2 * window_count_}});
  });
}

template <class T>
void LevelCorrelation<T>::invert(Rows<T> late, Rows<T> early) {
  const index_t block = level_.block;
  std::vector<WindowSums<T>> to(static_cast<std::size_t>(window_count_), {nullptr, nullptr, 0, 0});
  for (index_t r = 0; r < layout_.count(); ++r) {
    const auto strip = static_cast<std::size_t>(r);
    const index_t count = layout_.rows - layout_.begin(r);
    for (index_t lag = 1; lag <= lags_[strip]; ++lag) {
      const index_t left = count - lag * block;
      to[static_cast<std::size_t>(windows_[strip] + lag - 1)] = {
          late.row(r) + std::min(lag * block, count), early.row(r) + (lag - 1) * block,
          std::clamp<index_t>(left, 0, block), std::clamp<index_t>(left + block, 0, block)};
    }
  }
  const index_t scratch_size = block * point();
  Buffer<T> scratch(resolve_threads(exec_) * scratch_size);
  parallel_for(exec_, window_count_ / simd_.lanes, [&](index_t item, int worker) {
    const index_t first = item * simd_.lanes;
    const T* re = sums_.data() + first;
    simd_.inverse_windows(plan_.fft(), {re, re + window_count_, 2 * window_count_},
                          to.data() + first, scratch.data() + worker * scratch_size);
  });
}

namespace {

constexpr index_t kSlices = 32;  // of the diagonal, a fixed number: sums do not depend on threads

/// Lags inside diagonal blocks. Slices of the diagonal are summed side by side, each for the strips
/// that it meets.
template <class T>
void correlate_diagonal(const StripLayout& layout, index_t diagonal, Rows<const T> x,
                        Rows<const T> y, index_t channels, Rows<T> out, const Exec& exec) {
  const Pieces pieces = cut_into_pieces(layout, diagonal);
  const index_t blocks = ceil_div(layout.rows, diagonal), slices = std::min(kSlices, blocks);
  const index_t lags = std::min(diagonal, layout.rows);
  struct Slice {
    index_t first, last, strip = 0, offset = 0;  // pieces, and the first strip and its sums
  };
  std::vector<Slice> parts;
  index_t rows = 0;
  for (index_t slice = 0; slice < slices; ++slice) {
    const auto at = [&](index_t s) {
      return pieces.first[static_cast<std::size_t>(s * blocks / slices)];
    };
    Slice part{at(slice), at(slice + 1)};
    if (part.first == part.last) continue;
    part.strip = pieces.list[static_cast<std::size_t>(part.first)].strip;
    part.offset = rows;
    rows += pieces.list[static_cast<std::size_t>(part.last) - 1].strip - part.strip + 1;
    parts.push_back(part);
  }
  Buffer<T> sums(rows * lags);
  parallel_for(exec, static_cast<index_t>(parts.size()), [&](index_t item, int) {
    const Slice& part = parts[static_cast<std::size_t>(item)];
    for (index_t s = part.first; s < part.last; ++s) {
      const Piece& piece = pieces.list[static_cast<std::size_t>(s)];
      T* mine = sums.data() + (part.offset + piece.strip - part.strip) * lags;
      if (s == part.first || pieces.list[static_cast<std::size_t>(s) - 1].strip != piece.strip)
        std::fill_n(mine, lags, T(0));
      const index_t stop = std::min((piece.block + 1) * diagonal, layout.rows);
      kernels<T>().correlate_directly(piece.begin, piece.end, stop, x, y, channels, mine);
    }
  });
  for (const Slice& part : parts) {
    const index_t last = pieces.list[static_cast<std::size_t>(part.last) - 1].strip;
    for (index_t r = part.strip; r <= last; ++r) {
      const T* from = sums.data() + (part.offset + r - part.strip) * lags;
      for (index_t t = 0; t < std::min(lags, layout.rows - layout.begin(r)); ++t)
        out.row(r)[t] += from[t];
    }
  }
}

}  // namespace

template <class T>
void correlate_strips(const StripLayout& layout, const Schedule& schedule, Rows<const T> x,
                      Rows<const T> y, index_t channels, Rows<T> out, const Exec& exec,
                      StageSeconds& seconds) {
  if (layout.count() == 0 || layout.columns == 0) return;
  {
    StageTimer timer(seconds.diagonal);
    correlate_diagonal(layout, schedule.diagonal, x, y, channels, out, exec);
  }
  if (schedule.levels.empty()) return;
  Buffer<T> memory(layout.count() * layout.rows);
  const Rows<T> early{memory.data(), layout.rows};
  parallel_for(exec, layout.count(), [&](index_t r, int) {
    std::fill_n(early.row(r), layout.rows - layout.begin(r), T(0));
  });
  for (const Level& level : schedule.levels)
    LevelCorrelation<T>(layout, level, exec).apply(x, y, channels, out, early, seconds);
  parallel_for(exec, layout.count(), [&](index_t r, int) {
    T* to = out.row(r);
    const T* from = early.row(r);
    for (index_t t = 0; t < layout.rows - layout.begin(r); ++t) to[t] += from[t];
  });
}

template void correlate_strips(const StripLayout&, const Schedule&, Rows<const float>,
                               Rows<const float>, index_t, Rows<float>, const Exec&, StageSeconds&);
template void correlate_strips(const StripLayout&, const Schedule&, Rows<const double>,
                               Rows<const double>, index_t, Rows<double>, const Exec&,
                               StageSeconds&);

}  // namespace convbasis
