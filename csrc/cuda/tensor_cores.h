#pragma once

#include "cuda/element.h"

namespace convbasis::cuda {

// Products of tiles of 16-bit numbers with float sums, on the tensor cores of a warp of kLanes
// threads, whose registers hold the tiles. With g = lane / 4 and c = 2 * (lane % 4), a lane has
//
//   of left (16, 16):  rows g and g + 8 at columns c and c + 1, then at c + 8 and c + 9
//   of right (16, 8):  column g at rows c and c + 1, then at c + 8 and c + 9
//   of sums (16, 8):   row g at columns c and c + 1, then row g + 8
//
// so that weights formed from sums are a left operand as they lie.

constexpr int kLanes = 32;

/// Two 16-bit numbers in each word, the first in its low half.
struct LeftTile {
  std::uint32_t pairs[4];
};
struct RightTile {
  std::uint32_t pairs[2];
};
struct SumTile {
  float of[4];
};

[[nodiscard]] CONVBASIS_DEVICE int lane_row(int t) { return t % kLanes / 4; }
[[nodiscard]] CONVBASIS_DEVICE int lane_column(int t) { return t % 4 * 2; }

#ifdef __CUDACC__

/// Two numbers, rounded to the element.
template <Element kElement>
[[nodiscard]] CONVBASIS_DEVICE std::uint32_t packed(float low, float high) {
  std::uint32_t pair;
  if constexpr (kElement == Element::float16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// sums(t) += left(t) * right(t), each the part of thread t. All threads of the block take part.
template <Element kElement, int Threads, class Left, class Right, class Sums>
CONVBASIS_DEVICE void multiply_add(Block<Threads>&, const Left& left, const Right& right,
                                   const Sums& sums) {
  const int t = static_cast<int>(threadIdx.x);
  const LeftTile a = left(t);
  const RightTile b = right(t);
  float (&c)[4] = sums(t).of;
  if constexpr (kElement == Element::float16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b.pairs[0]),
          "r"(b.pairs[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b.pairs[0]),
          "r"(b.pairs[1]));
  }
}

/// value(t) becomes that of the four lanes which share rows of sums, joined by `join`.
template <int Threads, class Join, class Value>
CONVBASIS_DEVICE void join_rows(Block<Threads>&, const Join& join, const Value& value) {
  auto& mine = value(static_cast<int>(threadIdx.x));
  mine = join(mine, __shfl_xor_sync(0xffffffffU, mine, 1));
  mine = join(mine, __shfl_xor_sync(0xffffffffU, mine, 2));
}

#else

template <Element kElement>
[[nodiscard]] std::uint32_t packed(float low, float high) {
  const auto half = kElement == Element::float16 ? to_float16 : to_bfloat16;
  return static_cast<std::uint32_t>(half(high)) << 16 | half(low);
}

template <Element kElement, int Threads, class Left, class Right, class Sums>
void multiply_add(Block<Threads>&, const Left& left, const Right& right, const Sums& sums) {
  const auto number = [](std::uint32_t pair, int i) {
    const auto half = static_cast<std::uint16_t>(pair >> 16 * i);
    return kElement == Element::float16 ? from_float16(half) : from_bfloat16(half);
  };
  for (int first = 0; first < Threads; first += kLanes) {
    float a[16][16], b[16][8];
    for (int t = first; t < first + kLanes; ++t) {
      const LeftTile lefts = left(t);
      const RightTile rights = right(t);
      for (int i = 0; i < 8; ++i)
        a[lane_row(t) + i / 2 % 2 * 8][lane_column(t) + i / 4 * 8 + i % 2] =
            number(lefts.pairs[i / 2], i % 2);
      for (int i = 0; i < 4; ++i)
        b[lane_column(t) + i / 2 * 8 + i % 2][lane_row(t)] = number(rights.pairs[i / 2], i % 2);
    }
    for (int t = first; t < first + kLanes; ++t)
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k)
          sums(t).of[i] += a[lane_row(t) + i / 2 * 8][k] * b[k][lane_column(t) + i % 2];
  }
}

template <int Threads, class Join, class Value>
void join_rows(Block<Threads>&, const Join& join, const Value& value) {
  for (int t = 0; t < Threads; t += 4) {
    const auto all = join(join(value(t), value(t + 1)), join(value(t + 2), value(t + 3)));
    for (int i = 0; i < 4; ++i) value(t + i) = all;
  }
}

#endif

}  // namespace convbasis::cuda
