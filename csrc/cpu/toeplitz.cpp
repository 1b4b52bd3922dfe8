#include "convbasis/toeplitz.h"

#include <algorithm>
#include <memory>

#include "core/buffer.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/rows.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

constexpr index_t kFrequenciesPerTask = 4, kRowsPerGroup = 6, kBlocksPerGroup = 4,
                  kRowsPerTask = 1024;

/// One level of the schedule: pieces of the strips, spectra of kernels, inputs and outputs.
/// Spectra are stored frequency first, so that the products of one frequency are contiguous.
template <class T>
class LevelRun {
 public:
  LevelRun(const StripMatrix<T>& matrix, const Level& level, index_t channels, bool transpose,
           const Exec& exec)
      : matrix_(matrix),
        level_(level),
        transpose_(transpose),
        exec_(exec),
        simd_(kernels<T>()),
        fft_(simd_.make_fft(2 * level.block)),
        pieces_(cut_into_pieces(matrix.layout, level.block)),
        blocks_(ceil_div(matrix.layout.rows, level.block)),
        frequencies_(level.block + 1),
        chunk_(std::min<index_t>(channels, 2 * simd_.lanes)) {
    plan_weights();
    const index_t pieces = static_cast<index_t>(pieces_.list.size());
    inputs_ = transpose ? blocks_ : pieces;
    outputs_ = transpose ? pieces : blocks_;
    weights_ = Buffer<T>(frequencies_ * 2 * weight_count_);
    in_ = Buffer<T>(frequencies_ * inputs_ * 2 * chunk_);
    out_ = Buffer<T>(frequencies_ * outputs_ * 2 * chunk_);
    scratch_ = Buffer<T>(resolve_threads(exec) * scratch_size());
  }

  /// The spectra of the kernels, which all channels share.
  void prepare(StageSeconds& seconds) {
    StageTimer timer(seconds.transform);
    parallel_for(exec_, static_cast<index_t>(windows_.size()), [&](index_t item, int worker) {
      transform_window(windows_[static_cast<std::size_t>(item)], scratch(worker));
    });
  }

  /// y += the products of this level. A few channels at a time: all inputs of one frequency then
  /// fit the first cache, where every group of output blocks reads them again.
  void apply(Rows<const T> x, Rows<T> y, index_t channels, StageSeconds& seconds) {
    for (index_t c = 0; c < channels; c += chunk_) {
      channels_ = std::min(chunk_, channels - c);
      apply_chunk({x.data + c, x.stride}, {y.data + c, y.stride}, seconds);
    }
  }

 private:
  struct WindowTask {
    index_t strip, first_lag;
  };

  void apply_chunk(Rows<const T> x, Rows<T> y, StageSeconds& seconds) {
    {
      StageTimer timer(seconds.transform);
      parallel_for(exec_, inputs_,
                   [&](index_t input, int worker) { transform_input(input, x, scratch(worker)); });
    }
    {
      StageTimer timer(seconds.products);
      parallel_for(exec_, ceil_div(frequencies_, kFrequenciesPerTask), [&](index_t task, int) {
        const index_t first = task * kFrequenciesPerTask;
        const index_t last = std::min(first + kFrequenciesPerTask, frequencies_);
        for (index_t f = first; f < last; ++f) multiply_frequency(f);
      });
    }
    StageTimer timer(seconds.inverse);
    parallel_for(exec_, outputs_, [&](index_t o, int worker) { invert(o, y, scratch(worker)); });
  }

  /// Numbers that one transform needs: the channels of a block, or one vector of windows.
  [[nodiscard]] index_t scratch_size() const {
    return 2 * level_.block * std::max<index_t>(chunk_, simd_.lanes);
  }
  [[nodiscard]] T* scratch(int worker) { return scratch_.data() + worker * scratch_size(); }
  [[nodiscard]] index_t blocks_per_span() const { return level_.span / level_.block; }
  [[nodiscard]] bool is_first_of_span(index_t block) const {
    return block % blocks_per_span() == 0;
  }
  [[nodiscard]] bool is_last_of_span(index_t block) const {
    return (block + 1) % blocks_per_span() == 0 || block + 1 == blocks_;
  }

  /// Room for the spectra of every strip at block lags 1, 2, ...; where each piece finds its own.
  void plan_weights() {
    const StripLayout& layout = matrix_.layout;
    std::vector<index_t> base(layout.starts.size());
    for (index_t r = 0; r < layout.count(); ++r) {
      base[static_cast<std::size_t>(r)] = weight_count_;
      const index_t lags = max_block_lag(layout, r, level_);
      for (index_t lag = 1; lag <= lags; lag += simd_.lanes) windows_.push_back({r, lag});
      weight_count_ += round_up(lags, simd_.lanes);
    }
    offsets_.reserve(pieces_.list.size());
    for (const Piece& piece : pieces_.list)
      offsets_.push_back(base[static_cast<std::size_t>(piece.strip)] - piece.block - 1);
    base_ = std::move(base);
  }

  void transform_window(const WindowTask& task, T* scratch) {
    const StripLayout& layout = matrix_.layout;
    const index_t lag = (task.first_lag - 1) * level_.block;
    const index_t at = base_[static_cast<std::size_t>(task.strip)] + task.first_lag - 1;
    T* re = weights_.data() + at;
    simd_.forward_windows(*fft_, matrix_.kernels.row(task.strip) + lag,
                          layout.rows - layout.begin(task.strip) - lag, level_.block,
                          {re, re + weight_count_, 2 * weight_count_}, scratch);
  }

  void transform_input(index_t input, Rows<const T> x, T* scratch) {
    index_t begin, offset, count;
    if (transpose_) {  // a block of rows, in the second half
      if (is_first_of_span(input)) return;
      begin = input * level_.block;
      offset = level_.block;
      count = std::min(level_.block, matrix_.layout.rows - begin);
    } else {  // a piece of columns, in the first half
      const Piece& piece = pieces_.list[static_cast<std::size_t>(input)];
      if (is_last_of_span(piece.block)) return;
      begin = piece.begin;
      offset = piece.begin - piece.block * level_.block;
      count = piece.end - piece.begin;
    }
    T* re = in_.data() + input * 2 * channels_;
    simd_.forward_rows(*fft_, {x.row(begin), x.stride}, offset, count, channels_,
                       {re, re + channels_, inputs_ * 2 * channels_}, scratch);
  }

  /// Blocks are taken in small groups: what lies before the whole group is one register-blocked
  /// product, the few pairs inside the group follow one output at a time.
  void multiply_frequency(index_t f) {
    const T* weights = weights_.data() + f * 2 * weight_count_;
    const T* in = in_.data() + f * inputs_ * 2 * channels_;
    T* out = out_.data() + f * outputs_ * 2 * channels_;
    std::fill_n(out, outputs_ * 2 * channels_, T(0));
    const index_t stride = 2 * channels_;
    const FrequencyProduct<T> product{weights,
                                      weights + weight_count_,
                                      offsets_.data(),
                                      {in, stride},
                                      {in + channels_, stride},
                                      {out, stride},
                                      {out + channels_, stride},
                                      channels_};
    const auto first = [&](index_t block) {
      return pieces_.first[static_cast<std::size_t>(block)];
    };
    for (index_t begin = 0; begin < blocks_; begin += blocks_per_span()) {
      const index_t end = std::min(begin + blocks_per_span(), blocks_);
      for (index_t b = begin; b < end; b += kBlocksPerGroup) {
        const index_t stop = std::min(b + kBlocksPerGroup, end);
        if (transpose_) {
          simd_.multiply_conjugate(product, first(b), first(stop), stop, end);
          for (index_t c = b; c + 1 < stop; ++c)
            simd_.multiply_conjugate(product, first(c), first(c + 1), c + 1, stop);
        } else {
          simd_.multiply(product, b, stop, first(begin), first(b));
          for (index_t o = b + 1; o < stop; ++o)
            simd_.multiply(product, o, o + 1, first(b), first(o));
        }
      }
    }
  }

  void invert(index_t output, Rows<T> y, T* scratch) {
    index_t begin, offset, count;
    if (transpose_) {
      const Piece& piece = pieces_.list[static_cast<std::size_t>(output)];
      if (is_last_of_span(piece.block)) return;
      begin = piece.begin;
      offset = piece.begin - piece.block * level_.block;
      count = piece.end - piece.begin;
    } else {
      if (is_first_of_span(output)) return;
      begin = output * level_.block;
      offset = level_.block;
      count = std::min(level_.block, matrix_.layout.rows - begin);
    }
    const T* re = out_.data() + output * 2 * channels_;
    simd_.inverse_rows(*fft_, {re, re + channels_, outputs_ * 2 * channels_}, offset, count,
                       channels_, {y.row(begin), y.stride}, scratch);
  }

  const StripMatrix<T>& matrix_;
  Level level_;
  bool transpose_;
  Exec exec_;
  const Kernels<T>& simd_;
  std::unique_ptr<RealFft<T>> fft_;
  Pieces pieces_;
  index_t blocks_, frequencies_, chunk_, channels_ = 0;
  index_t inputs_ = 0, outputs_ = 0, weight_count_ = 0;
  std::vector<index_t> base_, offsets_;
  std::vector<WindowTask> windows_;
  Buffer<T> weights_, in_, out_, scratch_;
};

/// y[i] += sum over columns j <= i of the strip part [begin, end), for rows i in [begin, stop).
template <class T>
void multiply_diagonal(const Kernels<T>& simd, const T* kernel, index_t begin, index_t end,
                       index_t stop, Rows<const T> x, Rows<T> y, index_t channels) {
  index_t i = begin;
  for (; i < end; i += kRowsPerGroup) {
    const index_t group = std::min(kRowsPerGroup, stop - i);
    simd.weighted_rows(kernel + i, 1, -1, group, x, begin, i + 1, {y.row(i), y.stride}, channels);
    for (index_t o = 1; o < group; ++o)
      simd.weighted_rows(kernel + i + o, 1, -1, 1, x, i + 1, std::min(end, i + o + 1),
                         {y.row(i + o), y.stride}, channels);
  }
  if (i < stop)
    simd.weighted_rows(kernel + i, 1, -1, stop - i, x, begin, end, {y.row(i), y.stride}, channels);
}

/// y[j] += sum over rows i in [j, stop), for columns j in [begin, end).
template <class T>
void multiply_diagonal_transposed(const Kernels<T>& simd, const T* kernel, index_t begin,
                                  index_t end, index_t stop, Rows<const T> x, Rows<T> y,
                                  index_t channels) {
  for (index_t j = begin; j < end; j += kRowsPerGroup) {
    const index_t group = std::min(kRowsPerGroup, end - j);
    for (index_t o = 0; o + 1 < group; ++o)
      simd.weighted_rows(kernel - j - o, -1, 1, 1, x, j + o, j + group - 1,
                         {y.row(j + o), y.stride}, channels);
    simd.weighted_rows(kernel - j, -1, 1, group, x, j + group - 1, stop, {y.row(j), y.stride},
                       channels);
  }
}

}  // namespace

template <class T>
void multiply_strips(const StripMatrix<T>& matrix, const Schedule& schedule, bool transpose,
                     Rows<const T> x, Rows<T> y, index_t channels, const Exec& exec,
                     StageSeconds& seconds) {
  const StripLayout& layout = matrix.layout;
  const index_t outputs = transpose ? layout.columns : layout.rows;
  parallel_for(exec, ceil_div(outputs, kRowsPerTask), [&](index_t task, int) {
    const index_t last = std::min((task + 1) * kRowsPerTask, outputs);
    for (index_t i = task * kRowsPerTask; i < last; ++i) std::fill_n(y.row(i), channels, T(0));
  });
  if (layout.count() == 0) return;
  for (const Level& level : schedule.levels) {
    LevelRun<T> run(matrix, level, channels, transpose, exec);
    run.prepare(seconds);
    run.apply(x, y, channels, seconds);
  }

  StageTimer timer(seconds.diagonal);
  const Kernels<T>& simd = kernels<T>();
  parallel_for(exec, ceil_div(layout.rows, schedule.diagonal), [&](index_t block, int) {
    const index_t first = block * schedule.diagonal;
    const index_t stop = std::min(first + schedule.diagonal, layout.rows);
    for (index_t r = 0; r < layout.count(); ++r) {
      const index_t begin = std::max(first, layout.begin(r));
      const index_t end = std::min(stop, layout.end(r));
      if (begin >= end) continue;
      const auto multiply = transpose ? multiply_diagonal_transposed<T> : multiply_diagonal<T>;
      multiply(simd, matrix.kernels.row(r), begin, end, stop, x, y, channels);
    }
  });
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
    const Schedule schedule = choose_schedule(matrix.layout, padded);
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
