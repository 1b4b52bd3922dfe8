#include <limits>

#include "convbasis/cost_model.h"
#include "core/buffer.h"
#include "core/recover_checks.h"
#include "core/schedule.h"
#include "cuda/buffer.h"
#include "cuda/column_heads.h"
#include "cuda/gpu_schedule.h"
#include "cuda/numeric.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256;

enum class Way { every, scan, bisect };

/// What is found of a head: numbers on the device, kHeader of them before its starts.
enum Header { kCount, kComplete, kSeenFinite, kHeader };

/// A thread block finds the strips of a head, one after another.
template <class T>
struct FindStrips {
  static constexpr std::size_t kSharedBytes = sizeof(T) * kThreads;
  static constexpr int kLeastBlocks = 4;
  ColumnHeads<T> heads;
  Way way;
  double threshold;
  int rows, candidates, limit;
  index_t first_head;
  std::int32_t* found;  // (all heads, kHeader + limit)

  struct Flag {
    bool is_set;
  };
  /// What every thread knows of a search.
  struct State {
    int current = -1, count = 0;  // the running strip's first column, strips so far
    bool complete = true;
  };

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    std::int32_t* mine = found + (first_head + block.index) * (kHeader + index_t{limit});
    PerThread<Flag, kThreads> finite;
    block.each(kThreads, [&](int t) { finite[t] = {way == Way::scan}; });
    State state;
    if (way == Way::every) {
      state = {candidates - 1, candidates, true};
      block.each(kThreads, [&](int t) {
        for (int j = t; j < candidates; j += kThreads) mine[kHeader + j] = j;
      });
    }
    if (way == Way::scan) scan(block, mine + kHeader, state, finite);
    if (way == Way::bisect) bisect(block, mine + kHeader, state);
    const bool tail_agrees = look_at_tail(block, state.current, finite);
    const bool all_finite = !any(block, [&](int t) { return !finite[t].is_set; });
    block.each(1, [&](int) {
      mine[kCount] = state.count;
      mine[kComplete] = state.complete && tail_agrees ? 1 : 0;
      mine[kSeenFinite] = state.complete && all_finite ? 1 : 0;
    });
  }

  /// Distance in l1 of entry t, and every step-th entry after it, of a column's head to the running
  /// strip's, 0 before the first strip.
  [[nodiscard]] CONVBASIS_DEVICE T distance(index_t head, int column, int current, int count, int t,
                                            int step) const {
    const T* entries = heads.entries + head * heads.window * heads.columns;
    T sum = 0;
    for (; t < count; t += step) {
      const T* row = entries + index_t{t} * heads.columns;
      const T difference = row[column] - (current < 0 ? T(0) : row[current]);
      sum += difference < 0 ? -difference : difference;
    }
    return sum;
  }

  /// The first thread for which `holds` is true, kThreads when there is none.
  template <class F>
  CONVBASIS_DEVICE int first_of(Block<kThreads>& block, const F& holds) const {
    auto* flags = reinterpret_cast<std::int32_t*>(block.shared);
    block.each(kThreads, [&](int t) { flags[t] = holds(t) ? kThreads - t : 0; });
    max_all(block, flags);
    int top = 0;
    block.each(kThreads, [&](int) { top = flags[0]; });
    return kThreads - top;
  }
  template <class F>
  CONVBASIS_DEVICE bool any(Block<kThreads>& block, const F& holds) const {
    return first_of(block, holds) < kThreads;
  }

  /// Column j begins a strip, unless the head may have no more.
  CONVBASIS_DEVICE bool add(Block<kThreads>& block, int j, std::int32_t* starts,
                            State& state) const {
    if (state.count == limit) {
      state.complete = false;
      return false;
    }
    block.each(1, [&](int) { starts[state.count] = j; });
    ++state.count;
    state.current = j;
    return true;
  }

  /// Every column against the running strip, kThreads at a time.
  CONVBASIS_DEVICE void scan(Block<kThreads>& block, std::int32_t* starts, State& state,
                             PerThread<Flag, kThreads>& finite) const {
    for (int from = 0; from < candidates;) {
      const int at = first_of(block, [&](int t) {
        if (from + t >= candidates) return false;
        const auto apart =
            static_cast<double>(distance(block.index, from + t, state.current, heads.window, 0, 1));
        finite[t].is_set = finite[t].is_set && is_finite(apart);
        return apart >= threshold;
      });
      from += at;
      if (at == kThreads) continue;
      if (!add(block, from, starts, state)) return;
      ++from;
    }
  }

  /// Whether a column is far from the running strip, found by all threads together.
  CONVBASIS_DEVICE bool differs(Block<kThreads>& block, int column, int current) const {
    T* values = reinterpret_cast<T*>(block.shared);
    block.each(kThreads, [&](int t) {
      values[t] = distance(block.index, column, current, heads.window, t, kThreads);
    });
    sum_all(block, values);
    T sum = 0;
    block.each(kThreads, [&](int) { sum = values[0]; });
    return static_cast<double>(sum) >= threshold;
  }

  /// Each next start by binary search: Conv-Basis, Algorithms 2 and 3.
  CONVBASIS_DEVICE void bisect(Block<kThreads>& block, std::int32_t* starts, State& state) const {
    while (state.current + 1 < candidates) {
      int low = state.current + 1, high = candidates - 1;
      while (low < high) {
        const int middle = low + (high - low) / 2;
        if (differs(block, middle, state.current)) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      if (!differs(block, low, state.current) || !add(block, low, starts, state)) return;
    }
  }

  /// Whether the columns that are too short to be candidates belong to the last strip. A key that
  /// is not finite gives products that are not.
  CONVBASIS_DEVICE bool look_at_tail(Block<kThreads>& block, int current,
                                     PerThread<Flag, kThreads>& finite) const {
    const bool differs = any(block, [&](int t) {
      bool found_one = false;
      for (int j = candidates + t; j < heads.columns; j += kThreads) {
        const auto apart = static_cast<double>(distance(block.index, j, current, rows - j, 0, 1));
        finite[t].is_set = finite[t].is_set && is_finite(apart);
        found_one = found_one || apart >= threshold;
      }
      return found_one;
    });
    return !differs;
  }
};

/// Heads as they came from the device, as the CPU returns them.
StripStarts starts_of(const std::vector<std::int32_t>& found, index_t batch, index_t heads,
                      index_t limit, index_t n) {
  StripStarts result{batch, heads, 0, {}, {}, {}, true};
  const auto number = [&](index_t head, index_t i) {
    return index_t{found[static_cast<std::size_t>(head * (kHeader + limit) + i)]};
  };
  for (index_t head = 0; head < batch * heads; ++head) {
    result.num_bases.push_back(number(head, kCount));
    result.complete.push_back(number(head, kComplete) != 0 ? 1 : 0);
    result.seen_finite = result.seen_finite && number(head, kSeenFinite) != 0;
    result.max_bases = std::max(result.max_bases, number(head, kCount));
  }
  for (index_t head = 0; head < batch * heads; ++head)
    for (index_t r = 0; r < result.max_bases; ++r)
      result.starts.push_back(r < number(head, kCount) ? number(head, kHeader + r) : n);
  return result;
}

}  // namespace

template <class E>
StripStarts recover_starts(View<const E, 4> query, View<const E, 4> key, double scale,
                           const RecoverOptions& options, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "recover_basis";
  require_query_key(kName, query, key);
  require_options(kName, options);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  constexpr index_t kMost = std::numeric_limits<std::int32_t>::max() / 4;
  require(n <= kMost, kName,
          "query has " + std::to_string(n) + " rows; expected at most " + std::to_string(kMost));
  const index_t all = batch * query_heads, columns = std::min(n, key.shape[2]);
  if (all == 0 || columns == 0) {
    const std::vector<char> complete(static_cast<std::size_t>(all), 1);
    return {batch,    query_heads, 0, {}, std::vector<index_t>(complete.size()),
            complete, columns > 0};
  }
  const index_t window = std::min(options.window, n);
  const index_t candidates = std::min(n - window + 1, key.shape[2]);
  const bool take_every = options.num_bases && *options.num_bases >= candidates;
  const bool is_scan = options.search == RecoverOptions::Search::scan;
  index_t limit = candidates;
  if (options.num_bases) {
    limit = std::min(candidates, *options.num_bases);
  } else if (candidates > kFewBases) {
    const index_t value_dim = options.value_dim.value_or(head_dim);
    limit = std::min(candidates, std::max(kFewBases, break_even<T>(n, head_dim, value_dim)));
  }

  const DeviceGuard guard(stream.device);
  const index_t bytes = window * columns * static_cast<index_t>(sizeof(T));
  const index_t some = std::clamp(GpuModel().workspace / bytes, index_t{1}, all);
  const DeviceBuffer<T> entries(stream, some * window * columns);
  const DeviceBuffer<std::int32_t> found(stream, all * (kHeader + limit));
  const Array<T> queries = array_of(query, query_heads), keys = array_of(key, query_heads);
  for (index_t first = 0; first < all; first += some) {
    const index_t heads = std::min(some, all - first);
    form_column_heads(queries, keys, scale, first, heads, window, columns, entries.data(), stream);
    launch_blocks<kThreads>(
        stream, heads, FindStrips<T>::kSharedBytes,
        FindStrips<T>{{entries.data(), static_cast<int>(window), static_cast<int>(columns)},
                      take_every ? Way::every : (is_scan ? Way::scan : Way::bisect),
                      options.delta - 2 * static_cast<double>(window) * options.epsilon,
                      static_cast<int>(n),
                      static_cast<int>(candidates),
                      static_cast<int>(limit),
                      first,
                      found.data()});
  }
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(found.size()));
  copy(stream, numbers.data(), found.data(), numbers.size() * sizeof(std::int32_t));
  synchronize(stream);
  return starts_of(numbers, batch, query_heads, limit, n);
}

#define CONVBASIS_INSTANTIATE(E)                                                  \
  template StripStarts recover_starts(View<const E, 4>, View<const E, 4>, double, \
                                      const RecoverOptions&, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
