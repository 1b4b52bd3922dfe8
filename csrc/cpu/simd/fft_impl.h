// Included by kernels_impl.h: PocketFFT's real transform on vectors of channels. Its templates take
// any number type, so a transform along rows works on `lanes` channels at a time without
// transposes.

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
  explicit VectorFft(index_t length) : length_(length), plan_(static_cast<std::size_t>(length)) {}

  static RealFft<T>* make(index_t length) { return new VectorFft(length); }

  static void forward_rows(const RealFft<T>& fft, Rows<const T> x, index_t offset, index_t count,
                           index_t channels, Spectrum<T> out, T* scratch) {
    const auto& self = static_cast<const VectorFft&>(fft);
    V* buffer = reinterpret_cast<V*>(scratch);
    const index_t vectors = channels / kLength;
    const V zero(T(0));
    for (index_t v = 0; v < vectors; ++v) {
      V* column = buffer + v * self.length_;
      for (index_t i = 0; i < offset; ++i) column[i] = zero;
      for (index_t i = 0; i < count; ++i)
        column[offset + i] = V::load_unaligned(x.row(i) + v * kLength);
      for (index_t i = offset + count; i < self.length_; ++i) column[i] = zero;
      self.plan_.exec(column, T(1), true);
    }
    self.store(buffer, vectors, out);
  }

  static void inverse_rows(const RealFft<T>& fft, Spectrum<const T> in, index_t offset,
                           index_t count, index_t channels, Rows<T> y, T* scratch) {
    const auto& self = static_cast<const VectorFft&>(fft);
    V* buffer = reinterpret_cast<V*>(scratch);
    const index_t vectors = channels / kLength;
    self.gather(in, vectors, buffer);
    for (index_t v = 0; v < vectors; ++v) {
      V* column = buffer + v * self.length_;
      self.plan_.exec(column, T(1) / static_cast<T>(self.length_), false);
      for (index_t i = 0; i < count; ++i) {
        T* to = y.row(i) + v * kLength;
        (V::load_unaligned(to) + column[offset + i]).store_unaligned(to);
      }
    }
  }

  static void forward_windows(const RealFft<T>& fft, const T* x, index_t size, index_t step,
                              Spectrum<T> out, T* scratch) {
    const auto& self = static_cast<const VectorFft&>(fft);
    constexpr index_t lanes = kLength;
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
    self.plan_.exec(reinterpret_cast<V*>(scratch), T(1), true);
    self.store(reinterpret_cast<V*>(scratch), 1, out);
  }

 private:
  static constexpr index_t kLength = static_cast<index_t>(V::size);

  static V load_zero_padded(const T* p, index_t count) {
    alignas(64) T lanes[V::size];
    for (index_t i = 0; i < kLength; ++i) lanes[i] = i < count ? p[i] : T(0);
    return V::load_aligned(lanes);
  }

  // PocketFFT's half-complex order is r0, r1, i1, r2, i2, ..., r(length / 2).

  void store(const V* buffer, index_t vectors, Spectrum<T> out) const {
    const index_t half = length_ / 2;
    for (index_t f = 0; f <= half; ++f) {
      for (index_t v = 0; v < vectors; ++v) {
        const V* column = buffer + v * length_;
        const index_t at = f * out.stride + v * kLength;
        column[f == 0 ? 0 : 2 * f - 1].store_unaligned(out.re + at);
        (f == 0 || f == half ? V(T(0)) : column[2 * f]).store_unaligned(out.im + at);
      }
    }
  }

  void gather(Spectrum<const T> in, index_t vectors, V* buffer) const {
    const index_t half = length_ / 2;
    for (index_t f = 0; f <= half; ++f) {
      for (index_t v = 0; v < vectors; ++v) {
        V* column = buffer + v * length_;
        const index_t at = f * in.stride + v * kLength;
        column[f == 0 ? 0 : 2 * f - 1] = V::load_unaligned(in.re + at);
        if (f > 0 && f < half) column[2 * f] = V::load_unaligned(in.im + at);
      }
    }
  }

  index_t length_;
  pocketfft::detail::rfftp<T> plan_;
};

}  // namespace
}  // namespace convbasis

#undef pocketfft
