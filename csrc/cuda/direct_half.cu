#include <limits>

#include "core/buffer.h"
#include "cuda/direct.h"
#include "cuda/halves.h"

namespace convbasis::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes, kRows = kWarps * 16;
constexpr int kSources = 64, kStride = kSources + 8;  // lanes read 32 banks
constexpr index_t kNoStrip = std::numeric_limits<index_t>::min();

/// Two numbers as sums of two bfloat16s each: 16 bits of either.
struct SplitPair {
  std::uint32_t high, low;
};
[[nodiscard]] CONVBASIS_DEVICE SplitPair split(float first, float second) {
  const std::uint32_t high = packed<Element::bfloat16>(first, second);
  const float a = float_of(high << 16), b = float_of(high & 0xffff0000U);
  // An infinity is all in the high part.
  return {high, packed<Element::bfloat16>(first == a ? 0.0F : first - a,
                                          second == b ? 0.0F : second - b)};
}

/// A thread block has kRows outputs, 16 a warp, and Tiles * 64 channels; inputs come kSources rows
/// at a time. Weights are sums of two bfloat16s, and so are inputs of float16. What is left out is
/// 2^-17 of a product; of float16 also the product of both lower parts, 2^-16.
template <Element kElement, int Tiles>
struct DiagonalHalves {
  static constexpr bool kSplit = kElement == Element::float16;
  static constexpr int kChannels = Tiles * 64;
  static constexpr int kWeights = kRows * kStride, kInputs = kChannels * kStride;
  static constexpr std::size_t kSharedBytes =
      sizeof(index_t) * kRows + 2 * (2 * kWeights + (kSplit ? 2 : 1) * kInputs);
  static_assert(kSharedBytes <= kMostShared && kRows == kSources);

  struct Lane {
    SumTile sums[kChannels / 8];
  };
  struct Shared {
    index_t* kernels;                        // where lag 0 of a column's kernel lies, or kNoStrip
    std::uint16_t *high, *low;               // weights, (kRows, kSources)
    std::uint16_t *inputs, *rest_of_inputs;  // (kChannels, kSources)
  };

  StripTable<float> strips;
  Halves x;
  Array<float> y;
  index_t row_tiles, channel_tiles;
  int diagonal;  // a power of two
  bool transpose;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    Shared shared;
    shared.kernels = reinterpret_cast<index_t*>(block.shared);
    shared.high = reinterpret_cast<std::uint16_t*>(shared.kernels + kRows);
    shared.low = shared.high + kWeights;
    shared.inputs = shared.low + kWeights;
    shared.rest_of_inputs = shared.inputs + kInputs;
    const auto item = static_cast<std::uint32_t>(block.index / channel_tiles);
    const auto channel = static_cast<int>(block.index % channel_tiles) * kChannels;
    const int head = static_cast<int>(item / static_cast<std::uint32_t>(row_tiles));
    const int output = static_cast<int>(item % static_cast<std::uint32_t>(row_tiles)) * kRows;
    const int past = output + kRows, of_diagonal = -diagonal;  // a mask
    const int begin = transpose ? output : output & of_diagonal;
    int end = transpose ? (past + diagonal - 1) & of_diagonal : past;
    if (end > x.array.rows) end = static_cast<int>(x.array.rows);
    if (!strips.is_listed(head)) end = begin;

    PerThread<Lane, kThreads> lanes;
    block.lanes([&](int t) { lanes[t] = {}; });
    for (int first = begin; first < end; first += kSources) {
      form_weights(block, head, output, first, shared);
      load_inputs(block, head, first, channel, shared);
      add_products(block, shared, lanes);
      block.wait();
    }
    block.lanes([&](int t) {
      CONVBASIS_UNROLL
      for (int j = 0; j < kChannels / 8; ++j) {
        CONVBASIS_UNROLL
        for (int i = 0; i < 4; ++i) {
          const index_t row = output + t / kLanes * 16 + lane_row(t) + i / 2 * 8;
          const index_t c = channel + j * 8 + lane_column(t) + i % 2;
          if (row < y.rows && c < y.channels) y.store(head, row, c, lanes[t].sums[j].of[i]);
        }
      }
    });
  }

  /// Entries of the matrix that takes rows of x from `first` on to rows of y from `output` on.
  CONVBASIS_DEVICE void form_weights(Block<kThreads>& block, int head, int output, int first,
                                     const Shared& shared) const {
    const int column = transpose ? output : first;
    block.each(kRows, [&](int i) {
      const int strip = strips.strip_of(head, column + i);
      shared.kernels[i] =
          strip < 0 ? kNoStrip : strips.kernel(head, strip) - strips.kernel(head, 0);
    });
    const float* kernels = strips.kernel(head, 0);
    const auto weight = [&](int o, int s) -> float {
      const int row = output + o, source = first + s;
      const int lag = transpose ? source - row : row - source;
      const index_t kernel = shared.kernels[transpose ? o : s];
      const bool inside = (row ^ source) < diagonal && row < y.rows && source < x.array.rows;
      return kernel != kNoStrip && lag >= 0 && inside ? kernels[kernel + lag] : 0.0F;
    };
    block.each(kRows * kSources / 2, [&](int i) {  // a warp: 8 outputs, 4 pairs of inputs
      const int o = i / 4 % 8 + i / 256 * 8, s = 2 * (i % 4 + i / 32 % 8 * 4);
      const SplitPair pair = split(weight(o, s), weight(o, s + 1));
      const int at = o * kStride + s;
      *reinterpret_cast<std::uint32_t*>(shared.high + at) = pair.high;
      *reinterpret_cast<std::uint32_t*>(shared.low + at) = pair.low;
    });
  }

  CONVBASIS_DEVICE void load_inputs(Block<kThreads>& block, int head, int first, int channel,
                                    const Shared& shared) const {
    block.each(kSources * kChannels / 8, [&](int i) {
      const int s = i % kSources, c = i / kSources * 8;
      const Eight eight = x.load(head, first + s, channel + c);
      CONVBASIS_UNROLL
      for (int e = 0; e < 8; e += 2) {
        const int at = (c + e) * kStride + s;
        if constexpr (kSplit) {
          const SplitPair pair = split(from_float16(eight.of[e]), from_float16(eight.of[e + 1]));
          shared.inputs[at] = static_cast<std::uint16_t>(pair.high);
          shared.inputs[at + kStride] = static_cast<std::uint16_t>(pair.high >> 16);
          shared.rest_of_inputs[at] = static_cast<std::uint16_t>(pair.low);
          shared.rest_of_inputs[at + kStride] = static_cast<std::uint16_t>(pair.low >> 16);
        } else {
          shared.inputs[at] = eight.of[e];
          shared.inputs[at + kStride] = eight.of[e + 1];
        }
      }
    });
  }

  CONVBASIS_DEVICE void add_products(Block<kThreads>& block, const Shared& shared,
                                     PerThread<Lane, kThreads>& lanes) const {
    constexpr Element kProducts = Element::bfloat16;
    for (int k = 0; k < kSources; k += 16) {
      PerThread<LeftTile, kThreads> high, low;
      block.lanes([&](int t) {
        const int at = t / kLanes * 16 * kStride + k;
        high[t] = left_tile<kStride>(shared.high + at, t);
        low[t] = left_tile<kStride>(shared.low + at, t);
      });
      CONVBASIS_UNROLL
      for (int j = 0; j < kChannels / 8; ++j) {
        const int at = j * 8 * kStride + k;
        const auto of_high = [&](int t) { return high[t]; };
        const auto of_inputs = [&](int t) { return right_tile<kStride>(shared.inputs + at, t); };
        const auto sums = [&](int t) -> SumTile& { return lanes[t].sums[j]; };
        multiply_add<kProducts>(block, of_high, of_inputs, sums);
        multiply_add<kProducts>(block, [&](int t) { return low[t]; }, of_inputs, sums);
        if constexpr (kSplit)
          multiply_add<kProducts>(
              block, of_high,
              [&](int t) { return right_tile<kStride>(shared.rest_of_inputs + at, t); }, sums);
      }
    }
  }
};

template <Element kElement, int Tiles>
void multiply(const Strips<float>& strips, index_t diagonal, bool transpose, const Array<float>& x,
              const Array<float>& y, const Stream& stream) {
  using Kernel = DiagonalHalves<kElement, Tiles>;
  const index_t row_tiles = ceil_div(y.rows, kRows);
  const index_t channel_tiles = ceil_div(y.channels, Kernel::kChannels);
  const auto heads = static_cast<index_t>(strips.layouts.size());
  launch_blocks<kThreads>(stream, heads * row_tiles * channel_tiles, Kernel::kSharedBytes,
                          Kernel{strips.table, Halves(x), y, row_tiles, channel_tiles,
                                 static_cast<int>(diagonal), transpose});
}

}  // namespace

void multiply_diagonal_halves(const Strips<float>& strips, index_t diagonal, bool transpose,
                              const Array<float>& x, const Array<float>& y, const Stream& stream) {
  const auto run = x.element == Element::float16 ? multiply<Element::float16, 1>
                   : y.channels > 64             ? multiply<Element::bfloat16, 2>
                                                 : multiply<Element::bfloat16, 1>;
  run(strips, diagonal, transpose, x, y, stream);
}

}  // namespace convbasis::cuda
