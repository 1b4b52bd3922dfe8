#pragma once

#include "cuda/element.h"
#include "cuda/numeric.h"

namespace convbasis::cuda {

/// Sums flagged rows, which are few, one by one with a softmax of their own: O(keys) logits a row.
/// A thread block looks at kRows rows. Logits tells logit(head, row, key) in double, and how many
/// keys a row sees: keys(row).
template <class T, class Logits>
struct AttendSingleRows {
  static constexpr int kThreads = 128, kRows = 32;
  static constexpr std::size_t kSharedBytes = sizeof(double) * 2 * kThreads + sizeof(index_t) * 5;
  struct Sums {
    double top, total, value;
  };
  Logits logits;
  Array<T> value;
  const std::int32_t* flags;  // (all heads, rows)
  Array<T> out, lse;          // lse may be empty
  double* exact_lse;          // (all heads, rows), of flagged rows; may be null
  std::uint32_t tiles;        // of kRows rows, of a head

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    // Looked up, as indices that are computed in the loops below would be divided for in 64 bits:
    // where the arrays of the head begin, the head, and the first row.
    auto* begins = reinterpret_cast<index_t*>(block.shared + sizeof(double) * 2 * kThreads);
    const auto number = static_cast<std::uint32_t>(block.index);
    block.each(1, [&](int) {
      const index_t mine = number / tiles;
      begins[0] = value.at(mine, 0, 0);
      begins[1] = out.at(mine, 0, 0);
      begins[2] = lse.at(mine, 0, 0);
      begins[3] = mine;
      begins[4] = index_t{number % tiles} * kRows;
    });
    const int head = static_cast<int>(begins[3]);
    const index_t first = begins[4];
    for (index_t row = first; row < first + kRows && row < out.rows; ++row)
      if (flags[head * out.rows + row] != 0) attend(block, head, row);
  }

  CONVBASIS_DEVICE void attend(Block<kThreads>& block, int head, index_t row) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    index_t channel = 0;
    do {
      attend(block, head, row, channel, values, values + kThreads);
      channel += kThreads;
    } while (channel < out.channels);
  }

  /// kThreads channels. Weights are relative to the largest logit so far, and so small that no sum
  /// of values overflows.
  CONVBASIS_DEVICE void attend(Block<kThreads>& block, int head, index_t row, index_t channel,
                               double* values, double* weights) const {
    const index_t keys = logits.keys(row);
    const auto* begins = reinterpret_cast<const index_t*>(weights + kThreads);
    PerThread<Sums, kThreads> sums;
    block.each(kThreads, [&](int t) { sums[t] = {-INFINITY, 0, 0}; });
    for (index_t first = 0; first < keys; first += kThreads) {
      block.each(kThreads, [&](int t) {
        weights[t] = first + t < keys ? logits.logit(head, row, first + t) : -INFINITY;
        values[t] = weights[t];
      });
      max_all(block, values);
      block.each(kThreads, [&](int t) {
        const double top = larger_of(sums[t].top, values[0]);
        const double shrink = exp(sums[t].top - top);  // exp(-inf) = 0 at first
        sums[t] = {top, sums[t].total * shrink, sums[t].value * shrink};
        weights[t] = 0x1p-40 * exp(weights[t] - top);
      });
      block.each(kThreads, [&](int t) { values[t] = weights[t]; });
      sum_all(block, values);
      block.each(kThreads, [&](int t) {
        sums[t].total += values[0];
        if (channel + t >= out.channels) return;
        const index_t count = keys - first < kThreads ? keys - first : kThreads;
        const index_t from =
            begins[0] + first * value.strides[2] + (channel + t) * value.strides[3];
        for (index_t j = 0; j < count; ++j)
          sums[t].value +=
              weights[j] * static_cast<double>(value.read(from + j * value.strides[2]));
      });
    }
    // A division would be a call, for which registers go to memory.
    block.each(kThreads, [&](int t) {
      const double log_sum = log(0x1p40 * sums[t].total), inverse = exp(-log_sum);
      if (channel + t < out.channels)
        out.write(begins[1] + row * out.strides[2] + (channel + t) * out.strides[3],
                  static_cast<T>(sums[t].value * inverse * 0x1p40));
      if (channel + t > 0) return;
      if (lse.data != nullptr)
        lse.write(begins[2] + row * lse.strides[2], static_cast<T>(log_sum + sums[t].top));
      if (exact_lse != nullptr) exact_lse[head * out.rows + row] = log_sum + sums[t].top;
    });
  }
};

/// Of all heads of `out`.
template <class T, class Logits>
void attend_single_rows(index_t heads, const Logits& logits, const Array<T>& value,
                        const std::int32_t* flags, const Array<T>& out, const Array<T>& lse,
                        double* exact_lse, const Stream& stream) {
  using Kernel = AttendSingleRows<T, Logits>;
  const index_t tiles = (out.rows + Kernel::kRows - 1) / Kernel::kRows;
  launch_blocks<Kernel::kThreads>(
      stream, heads * tiles, Kernel::kSharedBytes,
      Kernel{logits, value, flags, out, lse, exact_lse, static_cast<std::uint32_t>(tiles)});
}

}  // namespace convbasis::cuda
