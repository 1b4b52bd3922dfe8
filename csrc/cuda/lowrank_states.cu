#include <cmath>

#include "core/buffer.h"
#include "cuda/gpu_schedule.h"
#include "cuda/lowrank_states.h"
#include "cuda/lowrank_tile.h"

namespace convbasis::cuda {
namespace {

constexpr double kSumsOfBlock = 4096;

/// Keys of a chunk. When causal, the keys of a row's own chunk take b (d + c) / 2 multiply-adds a
/// row, and states r (c + 1) / b numbers of four passes through memory. Otherwise chunks only keep
/// all multiprocessors busy.
index_t chunk_of(index_t rank, index_t head_dim, index_t stride, index_t keys, index_t heads,
                 bool is_causal, index_t element_size) {
  const GpuModel model;
  constexpr index_t kMultiple = LowRankTokens<float>::kTokenMultiple;
  const auto state = static_cast<double>(rank * stride);
  double wanted;
  if (is_causal) {
    const double bytes = 4 * static_cast<double>(element_size) * state / model.bytes;
    wanted = std::sqrt(bytes * model.flops / static_cast<double>(head_dim + stride));
    const double most = static_cast<double>(model.workspace / element_size) / state;
    wanted = std::max(wanted, static_cast<double>(keys) / std::max(most, 1.0));
  } else {
    const double tiles = std::ceil(state / kSumsOfBlock) * static_cast<double>(heads);
    const double chunks = std::ceil(4 * model.multiprocessors / tiles);
    wanted = static_cast<double>(keys) / chunks;
  }
  wanted = std::max(std::min(wanted, static_cast<double>(keys)), 1.0);
  return ceil_div(static_cast<index_t>(std::ceil(wanted)), kMultiple) * kMultiple;
}

/// The state of one chunk: a tile of features by channels.
template <class T, class Tile, int Width>
struct SumChunk {
  using Sums = PerThread<typename Tile::Sums, kTileThreads>;
  LowRankHeads<T> heads;
  Array<T> value;
  MonomialTable monomials;
  index_t chunk, chunks, keys, stride;
  std::uint32_t feature_tiles, channel_tiles;
  T* states;

  CONVBASIS_DEVICE void operator()(Block<kTileThreads> block) const {
    T* left = reinterpret_cast<T*>(block.shared);
    T* right = left + Tile::kDepth * Tile::kLeft;
    auto number = static_cast<std::uint32_t>(block.index);
    const index_t feature = index_t{number % feature_tiles} * Tile::kRows;
    number /= feature_tiles;
    const index_t channel = index_t{number % channel_tiles} * Width;
    number /= channel_tiles;
    const auto all = static_cast<std::uint32_t>(chunks);
    const index_t slot = number % all, item = number / all;
    const index_t begin = slot * chunk, end = begin + chunk < keys ? begin + chunk : keys;

    Sums sums;
    block.each(kTileThreads, [&](int t) { sums[t].clear(); });
    for (index_t first = begin; first < end; first += Tile::kDepth) {
      form_features(block, item, feature, first, left);
      block.each(Tile::kDepth * Tile::kRight, [&](int i) {
        const int column = i % Tile::kRight;
        const index_t j = first + i / Tile::kRight, c = channel + column;
        const bool inside = j < end && column < Width && c < value.channels;
        right[i] = inside ? heads.scales[item].value * value.load(heads.listed[item], j, c)
                          : static_cast<T>(column == Width);
      });
      block.each(kTileThreads, [&](int t) {
        Tile::add(t, Tile::kDepth, left, right, sums[t].tile);
        Tile::add_totals(t, Tile::kDepth, left, right, sums[t]);
      });
    }
    write(block, item, feature, channel,
          states + (item * (chunks + 1) + slot) * monomials.padded * stride, left, right, sums);
  }

  /// left(key, row) = feature `feature` + row of key `first` + key. A warp takes 8 neighbouring
  /// keys of 4 features, and writes to as many banks as it has threads.
  CONVBASIS_DEVICE void form_features(Block<kTileThreads>& block, index_t item, index_t feature,
                                      index_t first, T* left) const {
    constexpr int kLanes = 8, kEach = Tile::kDepth / kLanes;
    const T* keys_of_item = heads.keys + item * (heads.head_dim + 1) * heads.key_tokens + first;
    block.each(Tile::kRows * kLanes, [&](int i) {
      const int row = i / kLanes, key = i % kLanes;
      const index_t at = feature + row < monomials.padded ? feature + row : feature;
      T product[kEach];
      CONVBASIS_UNROLL
      for (int k = 0; k < kEach; ++k) product[k] = T(1);
      for (index_t slot = 0; slot < monomials.slots; ++slot) {
        const index_t variable = monomials.factors[slot * monomials.padded + at];
        const T* from = keys_of_item + variable * heads.key_tokens + key;
        CONVBASIS_UNROLL
        for (int k = 0; k < kEach; ++k) product[k] *= from[k * kLanes];
      }
      CONVBASIS_UNROLL
      for (int k = 0; k < kEach; ++k) left[(key + k * kLanes) * Tile::kLeft + row] = product[k];
    });
  }

  [[nodiscard]] CONVBASIS_DEVICE T weight(index_t item, index_t feature) const {
    return static_cast<T>(
        monomials.multinomials[feature] *
        heads.coefficients[item * (heads.degree + 1) + monomials.degrees[feature]]);
  }

  CONVBASIS_DEVICE void write(Block<kTileThreads>& block, index_t item, index_t feature,
                              index_t channel, T* state, T* left, T* right, Sums& sums) const {
    auto* totals = reinterpret_cast<double*>(right);
    Tile::sum_totals(block, sums, left, totals);
    block.each(kTileThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const index_t f = feature + Tile::row(t) + r;
        if (f >= monomials.padded) continue;
        const T factor = weight(item, f);
        CONVBASIS_UNROLL
        for (int k = 0; k < kQuad; ++k) {
          const index_t c = channel + Tile::column(t) + k;
          if (c < value.channels) state[f * stride + c] = factor * sums[t].tile.of[r][k];
        }
      }
    });
    block.each(Tile::kRows, [&](int i) {
      const index_t f = feature + i;
      if (channel == 0 && f < monomials.padded)
        state[f * stride + value.channels] = weight(item, f) * static_cast<T>(totals[i]);
    });
  }
};

/// Each number of the states becomes the sum over the chunks before.
template <class T>
struct SumBefore {
  static constexpr int kAhead = 8;  // that are loaded before one is written
  index_t chunks, size;
  T* states;

  CONVBASIS_DEVICE void operator()(index_t item, index_t i) const {
    T* numbers = states + item * (chunks + 1) * size + i;
    T sum = 0;
    for (index_t first = 0; first < chunks; first += kAhead) {
      T ahead[kAhead];
      CONVBASIS_UNROLL
      for (int k = 0; k < kAhead; ++k)
        ahead[k] = first + k < chunks ? numbers[(first + k) * size] : T(0);
      CONVBASIS_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (first + k < chunks) numbers[(first + k) * size] = sum;
        sum += ahead[k];
      }
    }
    numbers[chunks * size] = sum;
  }
};

}  // namespace

template <class T>
ChunkStates<T> plan_states(const MonomialTable& monomials, index_t head_dim, index_t channels,
                           index_t keys, index_t heads, bool is_causal) {
  ChunkStates<T> states;
  states.monomials = monomials;
  states.keys = keys;
  states.stride = channels + 1;
  states.chunk =
      chunk_of(monomials.padded, head_dim, states.stride, keys, heads, is_causal, sizeof(T));
  states.chunks = ceil_div(keys, states.chunk);
  return states;
}

template <class T>
void sum_chunks(const LowRankHeads<T>& heads, const Array<T>& value, ChunkStates<T>& states,
                const Stream& stream) {
  states.memory = {};  // given back before more is taken
  states.memory = DeviceBuffer<T>(stream, heads.count * states.of_head());
  with_tile<T>(value.channels, [&]<int Width>(LowRankTile<T, Width>) {
    using Tile = LowRankTile<T, Width>;
    const index_t features = ceil_div(states.monomials.padded, Tile::kRows);
    const index_t channels = std::max(ceil_div(value.channels, Width), index_t{1});
    launch_blocks<kTileThreads>(
        stream, heads.count * states.chunks * channels * features, Tile::kSharedBytes,
        SumChunk<T, Tile, Width>{heads, value, states.monomials, states.chunk, states.chunks,
                                 states.keys, states.stride, static_cast<std::uint32_t>(features),
                                 static_cast<std::uint32_t>(channels), states.memory.data()});
  });
  launch(stream, heads.count, states.size(),
         SumBefore<T>{states.chunks, states.size(), states.memory.data()});
}

#define CONVBASIS_INSTANTIATE(T)                                                                \
  template ChunkStates<T> plan_states(const MonomialTable&, index_t, index_t, index_t, index_t, \
                                      bool);                                                    \
  template void sum_chunks(const LowRankHeads<T>&, const Array<T>&, ChunkStates<T>&, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
