#pragma once

#include "cuda/numeric.h"

namespace convbasis::cuda {

// Sums of `width` neighbouring numbers without a subtraction, so that nothing cancels, of kRun
// neighbouring windows at a time. Wide windows share their middle; before it lies a suffix of one
// run of numbers, behind it a prefix of another. Those, and narrow windows, come from sums of 1, 2,
// 4, ... neighbours.

constexpr int kWindowThreads = 256, kRun = 512, kWindowEach = 2 * kRun / kWindowThreads;

/// `count` numbers, and zeros around them.
template <class T>
struct Numbers {
  const T* data;
  index_t count;
  [[nodiscard]] CONVBASIS_DEVICE double operator()(index_t i) const {
    return i >= 0 && i < count ? static_cast<double>(data[i]) : 0.0;
  }
};

/// The sum of each run of each sequence: sequences.of(s) gives its Numbers.
template <class Sequences>
struct RunTotals {
  static constexpr std::size_t kSharedBytes = sizeof(double) * kWindowThreads;
  Sequences sequences;
  index_t runs;    // of a sequence
  double* totals;  // (sequences, runs)
  CONVBASIS_DEVICE void operator()(Block<kWindowThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const auto numbers = sequences.of(block.index / runs);
    const index_t first = block.index % runs * kRun;
    block.each(kWindowThreads, [&](int t) {
      double sum = 0;
      for (int i = t; i < kRun; i += kWindowThreads) sum += numbers(first + i);
      values[t] = sum;
    });
    sum_all(block, values);
    block.each(1, [&](int) { totals[block.index] = values[0]; });
  }
};

/// What the threads of a block have while they sum windows.
class WindowSums {
 public:
  static constexpr std::size_t kSharedBytes = sizeof(double) * (2 * kRun + kWindowThreads);

  CONVBASIS_DEVICE explicit WindowSums(Block<kWindowThreads>& block)
      : values_(reinterpret_cast<double*>(block.shared)), partial_(values_ + 2 * kRun) {
    block.each(kWindowThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kWindowEach; ++e) total_[t].of[e] = 0;
    });
  }

  /// Adds the sums of numbers [low + i, low + i + width) for i < kRun; totals are those of the
  /// sequence's runs.
  template <class T>
  CONVBASIS_DEVICE void add(Block<kWindowThreads>& block, const Numbers<T>& numbers,
                            const double* totals, index_t low, index_t width) {
    const index_t high = low + width - 1;
    const bool wide = width >= kRun;
    block.each(2 * kRun, [&](int i) {
      if (!wide) {
        values_[i] = i < kRun + width - 1 ? numbers(low + i) : 0.0;
      } else if (i < kRun) {
        values_[i] = low + i < high ? numbers(low + i) : 0.0;  // summed towards its end
      } else {
        values_[i] = numbers(high + 2 * kRun - 1 - i);  // reversed: towards its beginning
      }
    });
    sum_windows(block, wide ? kRun : 2 * kRun, wide ? kRun : static_cast<int>(width));
    if (wide) sum_middle(block, numbers, totals, low + kRun, high);
    block.each(kWindowThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kRun / kWindowThreads; ++e) {
        const int i = t + e * kWindowThreads;
        total_[t].of[e] += wide ? values_[i] + partial_[0] + values_[2 * kRun - 1 - i] : values_[i];
      }
    });
  }

  /// f(i, sum) for the kRun windows.
  template <class F>
  CONVBASIS_DEVICE void each(Block<kWindowThreads>& block, const F& f) {
    block.each(kWindowThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kRun / kWindowThreads; ++e) f(t + e * kWindowThreads, total_[t].of[e]);
    });
  }

 private:
  struct Values {
    double of[kWindowEach];
  };

  /// values[i] becomes the sum of `width` values from i on, in segments of `segment`.
  CONVBASIS_DEVICE void sum_windows(Block<kWindowThreads>& block, int segment, int width) {
    block.each(kWindowThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kWindowEach; ++e) sum_[t].of[e] = 0;
    });
    for (int bit = 1, done = 0; bit <= width; bit *= 2) {
      const bool taken = (width & bit) != 0;
      block.each(kWindowThreads, [&](int t) {
        CONVBASIS_UNROLL
        for (int e = 0; e < kWindowEach; ++e) {
          const int i = t + e * kWindowThreads, left = segment - i % segment;
          if (taken && done < left) sum_[t].of[e] += values_[i + done];
          next_[t].of[e] = values_[i] + (bit < left ? values_[i + bit] : 0.0);
        }
      });
      if (taken) done += bit;
      block.each(kWindowThreads, [&](int t) {
        CONVBASIS_UNROLL
        for (int e = 0; e < kWindowEach; ++e) values_[t + e * kWindowThreads] = next_[t].of[e];
      });
    }
    block.each(kWindowThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int e = 0; e < kWindowEach; ++e) values_[t + e * kWindowThreads] = sum_[t].of[e];
    });
  }

  /// partial[0] = the sum of numbers [first, last): whole runs, and what lies before and behind
  /// them.
  template <class T>
  CONVBASIS_DEVICE void sum_middle(Block<kWindowThreads>& block, const Numbers<T>& numbers,
                                   const double* totals, index_t first, index_t last) {
    if (first < 0) first = 0;
    if (last > numbers.count) last = numbers.count;
    const index_t run = (first + kRun - 1) / kRun, stop = last > 0 ? last / kRun : 0;
    const index_t head_end = run * kRun < last ? run * kRun : last;
    const index_t tail = stop > run ? stop * kRun : head_end;
    block.each(kWindowThreads, [&](int t) {
      double sum = 0;
      for (index_t i = first + t; i < head_end; i += kWindowThreads) sum += numbers(i);
      for (index_t i = run + t; i < stop; i += kWindowThreads) sum += totals[i];
      for (index_t i = tail + t; i < last; i += kWindowThreads) sum += numbers(i);
      partial_[t] = sum;
    });
    sum_all(block, partial_);
  }

  double *values_, *partial_;
  PerThread<Values, kWindowThreads> next_, sum_, total_;
};

}  // namespace convbasis::cuda
