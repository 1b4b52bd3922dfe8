#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "convbasis/types.h"
#include "cpu/simd/lowrank_kernels.h"

namespace convbasis {

/// Passes of a transform of one length, with twiddle factors that an FftPlan owns.
///
/// The transform takes L real rows to the L complex values of their polynomial at the roots of
/// z^L = i. Modulo z^L - i, the product of two real polynomials is low + i * high, the two halves
/// of their linear convolution. So with w_m the lags m * L .. m * L + L - 1 of a kernel, the real
/// part of (w_m - i * w_{m-1}) * x is what a block of inputs x gives to the block of outputs m
/// further: transforms of length L where a cyclic convolution takes 2 L.
template <class T>
struct BlockFft {
  struct Pass {
    index_t radix, length;  ///< splits blocks of that length
    const T* twiddles;      ///< radix - 1 complex numbers for each of them
  };
  index_t length;
  int count;        ///< passes
  int cached;       ///< first of those that are run part by part, in the first cache
  Pass passes[16];  ///< plain, for the builds share no inline function
};

/// Lags (m - 1) * L and on of a kernel, the first `count` of them, then zeros.
template <class T>
struct Window {
  const T* lags;
  index_t count;
};

/// Spectra of `lanes` windows: value f of window l at re[f * stride + l], im[f * stride + l].
template <class T>
struct Spectrum {
  T* re;
  T* im;
  index_t stride;
};

/// Rows of channels, channel contiguous: row i at data + i * stride.
template <class T>
struct Rows {
  T* data;
  index_t stride;
  [[nodiscard]] T* row(index_t i) const noexcept { return data + i * stride; }
};

/// Products of `count` neighbouring frequencies and one vector of channels. A value is 2 * lanes
/// numbers, real parts first; spectra of a span stand one after the other. A piece acts on the
/// later blocks of its span.
template <class T>
struct FrequencyProduct {
  const T* weight_re;  ///< of piece s and block b: at offset[s] + b
  const T* weight_im;
  index_t weight_stride;  ///< to the next frequency
  const index_t* offset;
  const index_t* first;  ///< pieces [first[b], first[b + 1]) are those of block b
  const index_t* block;  ///< of each piece
  T* spectra;            ///< of the inputs of the span, which those of the outputs replace
  index_t stride;        ///< to the next spectrum
  index_t count;
  T* packed;  ///< scratch for count * inputs values
};

/// Where the lags of a window go: m * L and on to `late`, (m - 1) * L and on to `early`.
template <class T>
struct WindowSums {
  T* late;
  T* early;
  index_t late_count, early_count;  ///< at most L; none when 0
};

/// Products of `count` neighbouring frequencies and one vector of channels, the adjoint of
/// FrequencyProduct: of the pieces of a strip with the blocks that each acts on, summed.
template <class T>
struct FrequencyCorrelation {
  index_t strips;
  const index_t* first;     ///< pieces [first[r], first[r + 1]) are those of strip r
  const index_t* window;    ///< of strip r and block lag 1
  const index_t* lags;      ///< block lags of strip r, 0 or more
  index_t pieces;           ///< of all strips
  const index_t* position;  ///< of the block of each piece in block_spectra
  const index_t* reach;     ///< block lags of each piece
  index_t blocks;           ///< lanes / 2 of them after the last one of a span have no spectrum
  const T* spectra;         ///< of pieces and blocks, at their first frequency
  index_t stride;           ///< to the next spectrum
  const index_t* piece_spectra;  ///< which is that of each piece, -1 for none
  const index_t* block_spectra;
  index_t count;
  T* packed;        ///< scratch for count * (pieces + blocks) values
  Spectrum<T> out;  ///< at the first frequency; lags are rounded up to lanes / 2
};

/// Columns, or rows when transposed, that a direct product sums before it adds to its output.
constexpr index_t kDirectTile = 66;

/// The hot loops, built once for each instruction set from the same source. Pointers to rows of
/// channels need no alignment; counts named `channels` are multiples of `lanes`.
template <class T>
struct Kernels {
  std::string_view name;  ///< "baseline", "avx2", "avx512"
  int lanes;              ///< elements of one vector

  /// y[i] = exp(x[i] - shift); may be in place.
  void (*exp_shifted)(const T* x, T shift, T* y, index_t n);
  /// x[i] = exp(x[i] - shift) in place; returns the sum.
  double (*exp_sum)(T* x, T shift, index_t n);
  /// max of x, n >= 1.
  T (*max_value)(const T* x, index_t n);
  /// max |x[i]|, 0 for none.
  T (*max_magnitude)(const T* x, index_t n);
  /// max |x[i] - y[i]|.
  T (*max_distance)(const T* x, const T* y, index_t n);
  /// Euclidean norm; neither overflows nor underflows before the result does.
  double (*norm)(const T* x, index_t n);
  /// max_magnitude and norm of each of `count` rows, of any number of channels.
  void (*measure_rows)(Rows<const T> x, index_t count, index_t channels, T* peaks, double* norms);
  /// l1 distance of two vectors.
  double (*l1_distance)(const T* x, const T* y, index_t n);
  /// y[i] = x[n - 1 - i]; x and y do not overlap.
  void (*copy_reversed)(const T* x, T* y, index_t n);
  bool (*all_finite)(const T* x, index_t n);
  /// y[i] *= factor.
  void (*scale)(T* y, T factor, index_t n);
  /// y[i] -= factor * a[i] * b[i]; returns the sum of a[i] * b[i].
  double (*subtract_product)(T* y, T factor, const T* a, const T* b, index_t n);
  /// x[i] = other where bit at + i of the words is 0, bit 0 being the lowest of the first word.
  void (*hide)(T* x, const std::uint64_t* words, index_t at, T other, index_t n);

  /// out[t] = factor * x[t] . y for rows t < count, rounded alike whatever t and count are.
  void (*dots)(Rows<const T> x, index_t count, const T* y, index_t channels, T factor, T* out);
  /// heads.row(j)[t] = factor * x[j + t] . y[j] for j < columns and t < window: a band of X Y^T.
  /// Rounded as by dots.
  void (*band_dots)(Rows<const T> x, Rows<const T> y, index_t columns, index_t window,
                    index_t channels, T factor, Rows<T> heads);
  /// The first of `columns` heads of `window` entries each whose l1 distance from `head` is at
  /// least `threshold`, else `columns`.
  index_t (*first_apart)(const T* heads, index_t columns, index_t window, const T* head,
                         double threshold);

  /// y[i] += sum over j in [begin, min(end, i + 1)) of kernel[i - j] * x[j], i in [begin, stop).
  void (*direct)(const T* kernel, index_t begin, index_t end, index_t stop, Rows<const T> x,
                 Rows<T> y, index_t channels);
  /// y[j] += sum over i in [j, stop) of kernel[i - j] * x[i], j in [begin, end), end <= stop.
  void (*direct_transposed)(const T* kernel, index_t begin, index_t end, index_t stop,
                            Rows<const T> x, Rows<T> y, index_t channels);

  /// out[t] += sum of x[j] . y[j + t] over j in [begin, end) with j + t < stop, for
  /// t in [0, stop - begin).
  void (*correlate_directly)(index_t begin, index_t end, index_t stop, Rows<const T> x,
                             Rows<const T> y, index_t channels, T* out);

  /// Transforms. Spectra are aligned as a Buffer.
  ///
  /// Values of the rows [0, count) placed at `offset` among zeros, one vector of channels: value f
  /// at spectrum + f * 2 * lanes, real parts, then imaginary parts.
  void (*forward_rows)(const BlockFft<T>& fft, Rows<const T> x, index_t offset, index_t count,
                       T* spectrum);
  /// y[i] += real part of row offset + i of the inverse times length, i in [0, count). The spectrum
  /// is used up.
  void (*inverse_rows)(const BlockFft<T>& fft, T* spectrum, index_t offset, index_t count,
                       Rows<T> y);
  /// Values of w_m - i * w_{m-1} divided by length, of `lanes` windows. `scratch` holds a spectrum.
  void (*forward_windows)(const BlockFft<T>& fft, const Window<T>* windows, Spectrum<T> out,
                          T* scratch);

  /// The adjoint: of the inverse v of each of `lanes` spectra, divided by length, the real part is
  /// added to `late`, the imaginary part subtracted from `early`.
  void (*inverse_windows)(const BlockFft<T>& fft, Spectrum<const T> in,
                          const WindowSums<T>* windows, T* scratch);

  /// out[b] = sum of weight(s, b) * in[s] over the pieces s of blocks before b, for the blocks b in
  /// [begin + 1, end) of the span [begin, end).
  void (*multiply)(const FrequencyProduct<T>&, index_t begin, index_t end);
  /// out[s] = sum of conj(weight(s, b)) * in[b] over the blocks b after that of s, for the pieces s
  /// of the blocks [begin, end - 1).
  void (*multiply_transposed)(const FrequencyProduct<T>&, index_t begin, index_t end);
  /// out(r, lag) += sum of conj(piece) * block over the pieces of strip r and the channels.
  void (*correlate)(const FrequencyCorrelation<T>&);

  LowRankKernels<T> low_rank;
};

/// The fastest build this CPU can run, chosen once.
template <class T>
[[nodiscard]] const Kernels<T>& kernels();

/// Every build this CPU can run, slowest first: for tests and build_info.
template <class T>
[[nodiscard]] std::vector<const Kernels<T>*> available_kernels();

}  // namespace convbasis
