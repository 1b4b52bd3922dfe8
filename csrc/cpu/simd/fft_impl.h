// Included by kernels_impl.h: PocketFFT's real transform on vectors of channels. Its templates take
// any number type, so a transform along rows works on `lanes` channels at a time without transposes.

#define CONVBASIS_CONCAT_(a, b) a##b
#define CONVBASIS_CONCAT(a, b) CONVBASIS_CONCAT_(a, b)
// A namespace of its own for each build: the same templates are compiled with different flags.
#define pocketfft CONVBASIS_CONCAT(pocketfft_, CONVBASIS_SIMD_TAG)
#define POCKETFFT_NO_MULTITHREADING
#include <pocketfft.hpp>
#undef POCKETFFT_NO_MULTITHREADING

#include "cpu/simd/kernels.h"

namespace convbasis {
namespace {

template <class T, class V>
class VectorFft final : public RealFft<T> {
 public:
  explicit VectorFft(index_t length)
      : length_(length), plan_(static_cast<std::size_t>(length)) {}

  static RealFft<T>* make(index_t length) { return new VectorFft(length); }

  static void forward_rows(const RealFft<T>& fft, Rows<const T> x, index_t offset, index_t count,
                           Spectrum<T> out, T* scratch) {
    const auto& self = static_cast<const VectorFft&>(fft);
    V* buffer = reinterpret_cast<V*>(scratch);
    const V zero(T(0));
    for (index_t i = 0; i < offset; ++i) buffer[i] = zero;
    for (index_t i = 0; i < count; ++i) buffer[offset + i] = V::load_unaligned(x.row(i));
    for (index_t i = offset + count; i < self.length_; ++i) buffer[i] = zero;
    self.forward(buffer, out);
  }

  static void inverse_rows(const RealFft<T>& fft, Spectrum<const T> in, index_t offset,
                           index_t count, Rows<T> y, T* scratch) {
    const auto& self = static_cast<const VectorFft&>(fft);
    V* buffer = reinterpret_cast<V*>(scratch);
    const index_t half = self.length_ / 2;
    buffer[0] = V::load_unaligned(in.re);
    for (index_t f = 1; f < half; ++f) {
      buffer[2 * f - 1] = V::load_unaligned(in.re + f * in.stride);
      buffer[2 * f] = V::load_unaligned(in.im + f * in.stride);
    }
    buffer[self.length_ - 1] = V::load_unaligned(in.re + half * in.stride);
    self.plan_.exec(buffer, T(1) / static_cast<T>(self.length_), false);
    for (index_t i = 0; i < count; ++i) {
      (V::load_unaligned(y.row(i)) + buffer[offset + i]).store_unaligned(y.row(i));
    }
  }

  static void forward_windows(const RealFft<T>& fft, const T* x, index_t size, index_t step,
                              Spectrum<T> out, T* scratch) {
    const auto& self = static_cast<const VectorFft&>(fft);
    constexpr index_t lanes = static_cast<index_t>(V::size);
    // Squares of lanes x lanes are transposed in registers; lags past `size` are zero.
    V square[static_cast<std::size_t>(lanes)];
    for (index_t i = 0; i < self.length_; i += lanes) {
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = lane * step + i, left = size - at;
        square[lane] = left >= lanes ? V::load_unaligned(x + at) : load_zero_padded(x + at, left);
      }
      xsimd::transpose(square, square + lanes);
      for (index_t l = 0; l < lanes; ++l) square[l].store_aligned(scratch + (i + l) * lanes);
    }
    self.forward(reinterpret_cast<V*>(scratch), out);
  }

 private:
  static V load_zero_padded(const T* p, index_t count) {
    alignas(64) T lanes[V::size];
    for (index_t i = 0; i < static_cast<index_t>(V::size); ++i) lanes[i] = i < count ? p[i] : T(0);
    return V::load_aligned(lanes);
  }

  /// In place; then half-complex order (r0, r1, i1, r2, i2, ...) to split real and imaginary rows.
  void forward(V* buffer, Spectrum<T> out) const {
    plan_.exec(buffer, T(1), true);
    const index_t half = length_ / 2;
    const V zero(T(0));
    buffer[0].store_unaligned(out.re);
    zero.store_unaligned(out.im);
    for (index_t f = 1; f < half; ++f) {
      buffer[2 * f - 1].store_unaligned(out.re + f * out.stride);
      buffer[2 * f].store_unaligned(out.im + f * out.stride);
    }
    buffer[length_ - 1].store_unaligned(out.re + half * out.stride);
    zero.store_unaligned(out.im + half * out.stride);
  }

  index_t length_;
  pocketfft::detail::rfftp<T> plan_;
};

}  // namespace
}  // namespace convbasis

#undef pocketfft
