#pragma once

#include <string_view>
#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// Twiddles of one real FFT length; opaque outside the build that made it. Immutable.
template <class T>
class RealFft {
 public:
  virtual ~RealFft() = default;
};

/// A spectrum of vectors of channels: value f, channel c at re[f * stride + c], im[f * stride + c],
/// for f = 0 .. length / 2.
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

/// Terms of one frequency: out[o] += sum over s in [first, last) of w[o, s] * in[s], complex, where
/// w[o, s] is found at weights + offset[s] + o, or, conjugated, at weights + offset[o] + s.
template <class T>
struct FrequencyProduct {
  const T* weight_re;
  const T* weight_im;
  const index_t* offset;
  Rows<const T> in_re, in_im;  ///< row s
  Rows<T> out_re, out_im;      ///< row o
  index_t channels;            ///< multiple of lanes
};

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
  /// l1 distance of two vectors.
  double (*l1_distance)(const T* x, const T* y, index_t n);
  bool (*all_finite)(const T* x, index_t n);
  /// y[i] *= factor.
  void (*scale)(T* y, T factor, index_t n);

  /// heads[(j - first) * window + t] = factor * x[j + t] . y[j] for columns j in [first, last) and
  /// t < window: the band below the diagonal of X Y^T.
  void (*band_dots)(Rows<const T> x, Rows<const T> y, index_t first, index_t last, index_t window,
                    index_t channels, T factor, T* heads);

  /// y[o] += sum over s in [first, last) of w[o * step_out + s * step_in] * x[s], o < outputs.
  void (*weighted_rows)(const T* w, index_t step_out, index_t step_in, index_t outputs,
                        Rows<const T> x, index_t first, index_t last, Rows<T> y, index_t channels);

  /// Real FFTs along rows, `lanes` channels at once; channels are stored together, a row a
  /// frequency. `scratch` holds length * channels numbers (length * lanes for windows).
  RealFft<T>* (*make_fft)(index_t length);
  /// Spectrum of the rows [0, count) placed at `offset` in a zero vector of the FFT's length.
  void (*forward_rows)(const RealFft<T>& fft, Rows<const T> x, index_t offset, index_t count,
                       index_t channels, Spectrum<T> out, T* scratch);
  /// y[i] += value offset + i of the inverse transform, i in [0, count).
  void (*inverse_rows)(const RealFft<T>& fft, Spectrum<const T> in, index_t offset, index_t count,
                       index_t channels, Rows<T> y, T* scratch);
  /// Spectra of `lanes` windows at once: window l holds x[l * step .. l * step + length), zero past
  /// `size`. Lane l of the spectrum is window l.
  void (*forward_windows)(const RealFft<T>& fft, const T* x, index_t size, index_t step,
                          Spectrum<T> out, T* scratch);

  /// Outputs [out_first, out_last) with the weights indexed by output, see FrequencyProduct.
  void (*multiply)(const FrequencyProduct<T>&, index_t out_first, index_t out_last,
                   index_t in_first, index_t in_last);
  /// The conjugate with the weights indexed by input.
  void (*multiply_conjugate)(const FrequencyProduct<T>&, index_t out_first, index_t out_last,
                             index_t in_first, index_t in_last);
};

/// The fastest build this CPU can run, chosen once.
template <class T>
[[nodiscard]] const Kernels<T>& kernels();

/// Every build this CPU can run, slowest first: for tests and build_info.
template <class T>
[[nodiscard]] std::vector<const Kernels<T>*> available_kernels();

}  // namespace convbasis
