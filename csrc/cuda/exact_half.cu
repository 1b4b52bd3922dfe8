#include "core/buffer.h"
#include "cuda/exact_half.h"
#include "cuda/halves.h"

namespace convbasis::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes, kRows = kWarps * 16;
constexpr int kKeys = 64, kDepth = 128;                           // of a tile of keys
constexpr int kDepthStride = kDepth + 8, kKeyStride = kKeys + 8;  // lanes read 32 banks

/// kRows query rows of one head, 16 a warp, and Tiles * 64 channels of their output. Keys come
/// kKeys at a time; logits, weights and sums stay in registers.
template <Element kElement, int Tiles>
struct AttendHalf {
  static constexpr int kChannels = Tiles * 64;
  static constexpr int kRight =
      kKeys * kDepthStride > kChannels* kKeyStride ? kKeys * kDepthStride : kChannels * kKeyStride;
  static constexpr std::size_t kSharedBytes = 2 * (kRows * kDepthStride + kRight);
  static_assert(kSharedBytes <= kMostShared);

  /// A lane's two rows. `sum` is of its own columns alone until the end.
  struct Lane {
    float top[2];
    double sum[2];
    SumTile sums[kChannels / 8];
  };
  struct Tops {
    float of[2];
  };
  struct Logits {
    SumTile of[kKeys / 8];
  };
  using Lanes = PerThread<Lane, kThreads>;
  using Tile = PerThread<Logits, kThreads>;

  Halves query, key, value;
  Array<float> out, lse;
  const std::int32_t* heads;  // null: all
  index_t row_tiles, channel_tiles;
  float scale;
  bool is_causal;

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* queries = reinterpret_cast<std::uint16_t*>(block.shared);
    std::uint16_t* others = queries + kRows * kDepthStride;  // keys, then values in their place
    const index_t channel = block.index % channel_tiles * kChannels;
    const index_t item = block.index / channel_tiles;
    const index_t head = heads == nullptr ? item / row_tiles : heads[item / row_tiles];
    const index_t row = (row_tiles - 1 - item % row_tiles) * kRows;  // the longest rows first
    const index_t keys = key.array.rows;
    const index_t end = is_causal && row + kRows < keys ? row + kRows : keys;

    Lanes lanes;
    block.lanes([&](int t) {
      lanes[t] = {};
      lanes[t].top[0] = lanes[t].top[1] = -INFINITY;
    });
    for (index_t first = 0; first < end; first += kKeys) {
      Tile tile;
      form_logits(block, head, row, first, queries, others, tile);
      weigh(block, row, first, tile, lanes);
      block.wait();
      add_values(block, head, first, channel, others, tile, lanes);
      block.wait();
    }
    finish(block, head, row, channel, lanes);
  }

  /// Query rows stay in shared memory where all their channels fit.
  CONVBASIS_DEVICE void form_logits(Block<kThreads>& block, index_t head, index_t row,
                                    index_t first, std::uint16_t* queries, std::uint16_t* keys,
                                    Tile& tile) const {
    const index_t depth = query.array.channels;
    block.lanes([&](int t) { tile[t] = {}; });
    for (index_t from = 0; from < depth; from += kDepth) {
      const int steps = static_cast<int>(depth - from < kDepth ? (depth - from + 15) / 16 : 8);
      const bool is_there = first > 0 && depth <= kDepth;
      if (from > 0) block.wait();
      block.each(kRows * kDepth / 8, [&](int i) {
        const int at = i / (kDepth / 8), c = i % (kDepth / 8) * 8;
        if (c >= 16 * steps) return;
        const int to = at * kDepthStride + c;
        if (!is_there)
          *reinterpret_cast<Eight*>(queries + to) = query.load(head, row + at, from + c);
        *reinterpret_cast<Eight*>(keys + to) = key.load(head, first + at, from + c);
      });
      for (int k = 0; k < steps; ++k) {
        PerThread<LeftTile, kThreads> left;
        block.lanes([&](int t) {
          left[t] = left_tile<kDepthStride>(queries + t / kLanes * 16 * kDepthStride + k * 16, t);
        });
        CONVBASIS_UNROLL
        for (int j = 0; j < kKeys / 8; ++j) {
          multiply_add<kElement>(
              block, [&](int t) { return left[t]; },
              [&](int t) {
                return right_tile<kDepthStride>(keys + j * 8 * kDepthStride + k * 16, t);
              },
              [&](int t) -> SumTile& { return tile[t].of[j]; });
        }
      }
    }
  }

  /// Logits to weights, relative to the largest logit so far; sums follow.
  CONVBASIS_DEVICE void weigh(Block<kThreads>& block, index_t row, index_t first, Tile& tile,
                              Lanes& lanes) const {
    PerThread<Tops, kThreads> tops;
    block.lanes([&](int t) {
      const index_t my_row = row + t / kLanes * 16 + lane_row(t);
      Tops top = {{lanes[t].top[0], lanes[t].top[1]}};
      CONVBASIS_UNROLL
      for (int j = 0; j < kKeys / 8; ++j) {
        CONVBASIS_UNROLL
        for (int i = 0; i < 4; ++i) {
          const index_t at = first + j * 8 + lane_column(t) + i % 2;
          const bool seen = at < key.array.rows && (!is_causal || at <= my_row + i / 2 * 8);
          float& logit = tile[t].of[j].of[i];
          logit = seen ? scale * logit : -INFINITY;
          top.of[i / 2] = larger_of(top.of[i / 2], logit);
        }
      }
      tops[t] = top;
    });
    const auto larger = [](float a, float b) { return larger_of(a, b); };
    join_rows(block, larger, [&](int t) -> float& { return tops[t].of[0]; });
    join_rows(block, larger, [&](int t) -> float& { return tops[t].of[1]; });
    block.lanes([&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < 2; ++r) {
        const float top = tops[t].of[r];
        const float shrink = exponential(lanes[t].top[r] - top);  // exp(-inf) = 0 at first
        float sum = 0;
        CONVBASIS_UNROLL
        for (int j = 0; j < kKeys / 8; ++j) {
          CONVBASIS_UNROLL
          for (int i = 2 * r; i < 2 * r + 2; ++i)
            sum += tile[t].of[j].of[i] = exponential(tile[t].of[j].of[i] - top);
        }
        lanes[t].top[r] = top;
        lanes[t].sum[r] = lanes[t].sum[r] * static_cast<double>(shrink) + static_cast<double>(sum);
        CONVBASIS_UNROLL
        for (int j = 0; j < kChannels / 8; ++j) {
          lanes[t].sums[j].of[2 * r] *= shrink;
          lanes[t].sums[j].of[2 * r + 1] *= shrink;
        }
      }
    });
  }

  CONVBASIS_DEVICE void add_values(Block<kThreads>& block, index_t head, index_t first,
                                   index_t channel, std::uint16_t* values, Tile& tile,
                                   Lanes& lanes) const {
    block.each(kKeys * kChannels / 8, [&](int i) {  // (channels, keys)
      const int at = i % kKeys, c = i / kKeys * 8;
      const Eight eight = value.load(head, first + at, channel + c);
      CONVBASIS_UNROLL
      for (int e = 0; e < 8; ++e) values[(c + e) * kKeyStride + at] = eight.of[e];
    });
    CONVBASIS_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      const auto weights = [&](int t) -> LeftTile {
        const float (&low)[4] = tile[t].of[2 * k].of;
        const float (&high)[4] = tile[t].of[2 * k + 1].of;
        return {{packed<kElement>(low[0], low[1]), packed<kElement>(low[2], low[3]),
                 packed<kElement>(high[0], high[1]), packed<kElement>(high[2], high[3])}};
      };
      CONVBASIS_UNROLL
      for (int j = 0; j < kChannels / 8; ++j) {
        multiply_add<kElement>(
            block, weights,
            [&](int t) { return right_tile<kKeyStride>(values + j * 8 * kKeyStride + k * 16, t); },
            [&](int t) -> SumTile& { return lanes[t].sums[j]; });
      }
    }
  }

  CONVBASIS_DEVICE void finish(Block<kThreads>& block, index_t head, index_t row, index_t channel,
                               Lanes& lanes) const {
    const auto plus = [](double a, double b) { return a + b; };
    join_rows(block, plus, [&](int t) -> double& { return lanes[t].sum[0]; });
    join_rows(block, plus, [&](int t) -> double& { return lanes[t].sum[1]; });
    block.lanes([&](int t) {
      CONVBASIS_UNROLL
      for (int r = 0; r < 2; ++r) {
        const index_t at = row + t / kLanes * 16 + lane_row(t) + r * 8;
        if (at >= out.rows) continue;
        const bool sees_keys = key.array.rows > 0;
        const float factor = sees_keys ? static_cast<float>(1 / lanes[t].sum[r]) : 0.0F;
        CONVBASIS_UNROLL
        for (int j = 0; j < kChannels / 8; ++j) {
          CONVBASIS_UNROLL
          for (int i = 0; i < 2; ++i) {
            const index_t c = channel + j * 8 + lane_column(t) + i;
            if (c < out.channels) out.store(head, at, c, factor * lanes[t].sums[j].of[2 * r + i]);
          }
        }
        if (lse.data == nullptr || channel > 0 || t % 4 > 0) continue;
        const double log_sum = static_cast<double>(lanes[t].top[r]) + log(lanes[t].sum[r]);
        lse.store(head, at, 0, sees_keys ? static_cast<float>(log_sum) : lanes[t].top[r]);
      }
    });
  }
};

template <Element kElement, int Tiles>
void attend(const OnlineSoftmax<float>& softmax, const Array<float>& value, const Array<float>& out,
            const Array<float>& lse, index_t heads, const std::int32_t* listed,
            const Stream& stream) {
  using Kernel = AttendHalf<kElement, Tiles>;
  const index_t row_tiles = ceil_div(out.rows, kRows);
  const index_t channel_tiles =
      std::max(ceil_div(out.channels, Kernel::kChannels), index_t{1});  // lse without channels
  launch_blocks<kThreads>(
      stream, heads * row_tiles * channel_tiles, Kernel::kSharedBytes,
      Kernel{Halves(softmax.query), Halves(softmax.key), Halves(value), out, lse, listed, row_tiles,
             channel_tiles, softmax.scale, softmax.is_causal});
}

}  // namespace

void attend_half(const OnlineSoftmax<float>& softmax, const Array<float>& value,
                 const Array<float>& out, const Array<float>& lse, index_t heads,
                 const std::int32_t* listed, const Stream& stream) {
  const bool is_wide = out.channels > 64, is_float16 = out.element == Element::float16;
  const auto run = is_float16
                       ? (is_wide ? attend<Element::float16, 2> : attend<Element::float16, 1>)
                   : is_wide ? attend<Element::bfloat16, 2>
                             : attend<Element::bfloat16, 1>;
  run(softmax, value, out, lse, heads, listed, stream);
}

}  // namespace convbasis::cuda
