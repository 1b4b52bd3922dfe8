#include "core/buffer.h"
#include "cuda/buffer.h"
#include "cuda/products.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 128, kInputs = 32, kOutputs = static_cast<int>(kTileOutputs);

/// A thread block has one tile and kThreads / Lanes frequencies; a thread has one channel of one
/// frequency and all outputs of the tile. Weights go through shared memory, where all channels
/// read the same ones; each spectrum of an input is read once.
template <class T, int Lanes>
struct MultiplyTiles {
  static constexpr int kFrequencies = kThreads / Lanes;
  static constexpr std::size_t kSharedBytes =
      sizeof(Complex<T>) * kFrequencies * kInputs * kOutputs;
  SpectraProduct<T> p;
  index_t channel_tiles;

  struct Sums {
    Complex<T> of[kOutputs];
  };

  [[nodiscard]] CONVBASIS_DEVICE Complex<T> weight(index_t f, int input, int output) const {
    const Slot a = p.inputs[input], b = p.outputs[output];
    const int from = p.transpose ? b.block : a.block, base = p.transpose ? b.base : a.base;
    const int to = p.transpose ? a.block : b.block;
    if (f >= p.frequencies || to <= from) return {T(0), T(0)};
    Complex<T> value = p.weights[f * p.windows + base + to];
    if (p.transpose) value.im = -value.im;
    return value;
  }

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* weights = reinterpret_cast<Complex<T>*>(block.shared);
    const Tile tile = p.tiles[block.index % p.tile_count];
    const index_t rest = block.index / p.tile_count;
    const index_t channel = rest % channel_tiles * Lanes;
    const index_t first_f = rest / channel_tiles * kFrequencies;
    PerThread<Sums, kThreads> sums;
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int o = 0; o < kOutputs; ++o) sums[t].of[o] = {T(0), T(0)};
    });
    for (int first = 0; first < tile.inputs; first += kInputs) {
      const int count = tile.inputs - first < kInputs ? tile.inputs - first : kInputs;
      block.each(kFrequencies * kInputs * kOutputs, [&](int i) {
        const int o = i % kOutputs, input = i / kOutputs % kInputs, f = i / kOutputs / kInputs;
        weights[i] = o < tile.outputs && input < count
                         ? weight(first_f + f, tile.input + first + input, tile.output + o)
                         : Complex<T>{T(0), T(0)};
      });
      block.each(kThreads, [&](int t) {
        const index_t f = first_f + t / Lanes, c = channel + t % Lanes;
        if (f >= p.frequencies || c >= p.width) return;
        const Complex<T>* x = p.in + f * p.in_columns + (tile.input + first) * p.width + c;
        const Complex<T>* w = weights + t / Lanes * (kInputs * kOutputs);
        for (int input = 0; input < count; ++input, x += p.width, w += kOutputs) {
          const Complex<T> value = *x;
          CONVBASIS_UNROLL
          for (int o = 0; o < kOutputs; ++o) {
            Complex<T>& sum = sums[t].of[o];
            sum.re += w[o].re * value.re - w[o].im * value.im;
            sum.im += w[o].re * value.im + w[o].im * value.re;
          }
        }
      });
    }
    block.each(kThreads, [&](int t) {
      const index_t f = first_f + t / Lanes, c = channel + t % Lanes;
      if (f >= p.frequencies || c >= p.width) return;
      Complex<T>* to = p.out + f * p.out_columns + tile.output * p.width + c;
      CONVBASIS_UNROLL
      for (int o = 0; o < kOutputs; ++o)
        if (o < tile.outputs) to[o * p.width] = sums[t].of[o];
    });
  }
};

template <int Lanes, class T>
void run(const SpectraProduct<T>& product, const Stream& stream) {
  using Kernel = MultiplyTiles<T, Lanes>;
  const index_t channel_tiles = ceil_div(product.width, Lanes);
  const index_t groups = ceil_div(product.frequencies, Kernel::kFrequencies);
  launch_blocks<kThreads>(stream, product.tile_count * channel_tiles * groups, Kernel::kSharedBytes,
                          Kernel{product, channel_tiles});
}

}  // namespace

template <class T>
void multiply_spectra(const SpectraProduct<T>& product, const Stream& stream) {
  if (product.width <= 32) {
    run<32>(product, stream);
  } else {
    run<128>(product, stream);
  }
}

template void multiply_spectra(const SpectraProduct<float>&, const Stream&);
template void multiply_spectra(const SpectraProduct<double>&, const Stream&);

}  // namespace convbasis::cuda
