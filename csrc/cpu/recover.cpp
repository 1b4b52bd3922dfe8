#include "convbasis/recover.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "convbasis/cost_model.h"
#include "core/heads.h"
#include "core/recover_checks.h"
#include "core/schedule.h"
#include "cpu/rows.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

// Tiles of packed rows fit the first-level cache at head_dim 64.
constexpr index_t kTile = 64, kWindowTile = 256, kItemsPerTask = 256;
constexpr index_t kHeadEntries = index_t{1} << 20;

/// Heads of columns of scale * Q K^T below the diagonal: head(j)[t] = scale * q_{j+t} . k_j, t < T.
template <class T>
class ColumnHeads {
 public:
  ColumnHeads(const View<const T, 2>& query, const View<const T, 2>& key, double scale)
      : query_(query),
        key_(key),
        channels_(round_up(query.shape[1], kernels<T>().lanes)),
        scale_(static_cast<T>(scale)) {}

  /// Packed rows, to be used again by calls that follow.
  struct Scratch {
    Buffer<T> keys, queries;
  };

  /// The first `count` entries of each column in [first, last). Packed rows are aligned, which
  /// loads want, and whatever the layout of the arrays is.
  void fill(index_t first, index_t last, index_t count, T* heads, Scratch& scratch) const {
    const index_t columns = std::min(kTile, last - first), entries = std::min(kWindowTile, count);
    auto& [keys, queries] = scratch;
    if (keys.size() < columns * channels_) keys = Buffer<T>(columns * channels_);
    const index_t rows = columns + entries - 1;
    if (queries.size() < rows * channels_) queries = Buffer<T>(rows * channels_);
    for (index_t j = first; j < last; j += columns) {
      const index_t end = std::min(j + columns, last);
      pack_rows(key_, j, end, channels_, keys.data());
      for (index_t t = 0; t < count; t += entries) {
        const index_t some = std::min(entries, count - t);
        pack_rows(query_, j + t, end + t + some - 1, channels_, queries.data());
        kernels<T>().band_dots({queries.data(), channels_}, {keys.data(), channels_}, end - j, some,
                               channels_, scale_, {heads + (j - first) * count + t, count});
      }
    }
  }

 private:
  View<const T, 2> query_, key_;
  index_t channels_;
  T scale_;
};

/// How many strips a head may have: as the options say, or up to break_even(), which takes a while
/// and is asked for where strips are many.
template <class T>
class StripLimit {
 public:
  StripLimit(const RecoverOptions& options, index_t n, index_t head_dim)
      : given_(options.num_bases),
        n_(n),
        head_dim_(head_dim),
        value_dim_(options.value_dim.value_or(head_dim)) {}

  /// Whether a head with `count` strips may have no more. Called by many threads at once.
  [[nodiscard]] bool reached(index_t count) const {
    if (given_) return count >= *given_;
    if (count < kFewBases) return false;
    index_t most = most_.load(std::memory_order_relaxed);
    if (most == 0) most_.store(most = break_even<T>(n_, head_dim_, value_dim_));
    return count >= most;
  }

 private:
  std::optional<index_t> given_;
  index_t n_, head_dim_, value_dim_;
  mutable std::atomic<index_t> most_{0};
};

template <class T>
struct Search {
  index_t columns;  ///< candidates: 0 .. n - T
  index_t window;
  const StripLimit<T>& limit;
  double threshold;  ///< delta - 2 T epsilon
  index_t rows, key_columns;
};

struct Found {
  std::vector<index_t> starts;
  bool complete = true;
  bool seen_finite = false;  ///< all candidate columns were formed, and are finite
};

/// Every column's head against the head of the running strip (v = head of its first column). Heads
/// are formed some columns at a time, in parallel, and compared in order; but for runs of columns
/// so near to each other that one stands for all.
template <class T>
Found scan(const ColumnHeads<T>& heads, const Search<T>& search, const Exec& exec) {
  const Kernels<T>& simd = kernels<T>();
  const index_t window = search.window;
  const index_t batch = std::min(std::max(kHeadEntries / window, kItemsPerTask), search.columns);
  Buffer<T> some(batch * window);
  std::vector<T> running(static_cast<std::size_t>(window), T(0));
  Found found;
  std::atomic<bool> finite{true};
  std::vector<char> alike(static_cast<std::size_t>(ceil_div(batch, kItemsPerTask)));
  const double near = search.threshold / 4;  // leaves room for rounding where two such meet
  for (index_t first = 0; first < search.columns; first += batch) {
    const index_t last = std::min(first + batch, search.columns);
    parallel_for(exec, ceil_div(last - first, kItemsPerTask), [&](index_t task, int) {
      const index_t from = first + task * kItemsPerTask;
      const index_t count = std::min(from + kItemsPerTask, last) - from;
      T* formed = some.data() + (from - first) * window;
      typename ColumnHeads<T>::Scratch scratch;
      heads.fill(from, from + count, window, formed, scratch);
      if (!simd.all_finite(formed, count * window)) finite.store(false, std::memory_order_relaxed);
      alike[static_cast<std::size_t>(task)] =
          simd.first_apart(formed, count, window, formed, near) == count ? 1 : 0;
    });
    for (index_t j = first; j < last;) {
      const T* head = some.data() + (j - first) * window;
      const index_t task = (j - first) / kItemsPerTask;
      const index_t end = std::min(first + (task + 1) * kItemsPerTask, last);
      // Columns near the first one are all within 3 near of a head that one of them is near to.
      const bool all_near = alike[static_cast<std::size_t>(task)] != 0 &&
                            simd.l1_distance(head, running.data(), window) < near;
      j = all_near ? end
                   : j + simd.first_apart(head, end - j, window, running.data(), search.threshold);
      if (j == end) continue;
      if (search.limit.reached(static_cast<index_t>(found.starts.size())))
        return {found.starts, false};
      found.starts.push_back(j);
      std::copy_n(some.data() + (j - first) * window, window, running.data());
      ++j;
    }
  }
  found.seen_finite = finite;
  return found;
}

/// Conv-Basis, Algorithms 2 and 3: each next start by binary search, which the (T, delta)
/// non-degeneracy makes valid.
template <class T>
Found bisect(const ColumnHeads<T>& heads, const Search<T>& search, const Exec& exec) {
  const Kernels<T>& simd = kernels<T>();
  std::vector<T> running(static_cast<std::size_t>(search.window), T(0)), head = running;
  typename ColumnHeads<T>::Scratch scratch;
  const auto differs = [&](index_t j) {
    parallel_for(exec, 1,
                 [&](index_t, int) { heads.fill(j, j + 1, search.window, head.data(), scratch); });
    return simd.l1_distance(head.data(), running.data(), search.window) >= search.threshold;
  };
  Found found;
  for (index_t start = -1; start + 1 < search.columns;) {
    index_t low = start + 1, high = search.columns - 1;
    while (low < high) {
      const index_t middle = low + (high - low) / 2;
      if (differs(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    if (!differs(low)) return found;
    if (search.limit.reached(static_cast<index_t>(found.starts.size())))
      return {found.starts, false};
    found.starts.push_back(start = low);
    running = head;
  }
  return found;
}

/// The last T - 1 columns are too short to be candidates. A valid basis has them in its last strip;
/// when one differs from it, the strips do not tell the whole matrix. O(T^2 d).
template <class T>
bool tail_agrees(const ColumnHeads<T>& heads, const Search<T>& search, index_t last_start,
                 const Exec& exec) {
  const index_t tails = search.key_columns - search.columns;
  if (tails <= 0) return true;
  std::vector<T> running(static_cast<std::size_t>(search.window), T(0));
  typename ColumnHeads<T>::Scratch scratch;
  if (last_start >= 0)
    heads.fill(last_start, last_start + 1, search.window, running.data(), scratch);
  std::atomic<bool> agrees{true};
  parallel_for(exec, tails, [&](index_t item, int) {
    if (!agrees.load(std::memory_order_relaxed)) return;
    const index_t column = search.columns + item, count = search.rows - column;
    Buffer<T> tail(count);
    typename ColumnHeads<T>::Scratch own;
    heads.fill(column, column + 1, count, tail.data(), own);
    if (kernels<T>().l1_distance(tail.data(), running.data(), count) >= search.threshold)
      agrees.store(false, std::memory_order_relaxed);
  });
  return agrees;
}

template <class T>
Found find_strips(const ColumnHeads<T>& heads, const Search<T>& search,
                  const RecoverOptions& options, const Exec& exec) {
  Found found;
  if (options.num_bases && *options.num_bases >= search.columns) {
    for (index_t j = 0; j < search.columns; ++j) found.starts.push_back(j);
  } else if (options.search == RecoverOptions::Search::scan) {
    found = scan(heads, search, exec);
  } else {
    found = bisect(heads, search, exec);
  }
  const index_t last_start = found.starts.empty() ? -1 : found.starts.back();
  found.complete = found.complete && tail_agrees(heads, search, last_start, exec);
  return found;
}

}  // namespace

template <class T>
StripStarts recover_starts(View<const T, 4> query, View<const T, 4> key, double scale,
                           const RecoverOptions& options, const Exec& exec) {
  constexpr const char* kName = "recover_basis";
  require_query_key(kName, query, key);
  require_options(kName, options);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const index_t window = std::min(options.window, std::max<index_t>(n, 1));
  const StripLimit<T> limit(options, n, head_dim);
  const Search<T> search{n == 0 ? 0 : std::min(n - window + 1, key.shape[2]),
                         window,
                         limit,
                         options.delta - 2 * static_cast<double>(window) * options.epsilon,
                         n,
                         std::min(n, key.shape[2])};

  std::vector<Found> found(static_cast<std::size_t>(batch * query_heads));
  for_each_head(exec, batch * query_heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const ColumnHeads<T> heads(head_view(query, b, h), head_view(key, b, g), scale);
    found[static_cast<std::size_t>(flat)] = find_strips(heads, search, options, inside);
  });

  StripStarts result{batch, query_heads, 0, {}, {}, {}, search.columns > 0};
  for (const Found& head : found) result.seen_finite = result.seen_finite && head.seen_finite;
  // Columns hold products with every query, and with every key that is a candidate.
  for (index_t flat = 0; result.seen_finite && flat < batch * key.shape[1]; ++flat) {
    const View<const T, 2> keys = head_view(key, flat / key.shape[1], flat % key.shape[1]);
    for (index_t j = search.columns; j < search.key_columns; ++j)
      for (index_t c = 0; c < head_dim; ++c)
        result.seen_finite = result.seen_finite && std::isfinite(keys(j, c));
  }
  for (const Found& head : found)
    result.max_bases = std::max(result.max_bases, static_cast<index_t>(head.starts.size()));
  for (const Found& head : found) {
    result.num_bases.push_back(static_cast<index_t>(head.starts.size()));
    result.complete.push_back(head.complete ? 1 : 0);
    result.starts.insert(result.starts.end(), head.starts.begin(), head.starts.end());
    result.starts.resize(
        static_cast<std::size_t>(static_cast<index_t>(result.num_bases.size()) * result.max_bases),
        n);
  }
  return result;
}

template <class T>
bool recover_kernels(View<const T, 4> query, View<const T, 4> key, View<const index_t, 3> starts,
                     View<const index_t, 2> num_bases, double scale, View<T, 4> kernels,
                     const Exec& exec) {
  constexpr const char* kName = "recover_kernels";
  require_query_key(kName, query, key);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const index_t k = kernels.shape[2];
  const Kernels<T>& simd = convbasis::kernels<T>();
  require_shape(kName, "kernels", kernels.shape, {batch, query_heads, k, n}, "to match query");
  require_basis<T>(kName, {starts, num_bases, kernels, std::min(n, key.shape[2])});

  for (index_t b = 0; b < batch; ++b)
    for (index_t h = 0; h < query_heads; ++h)
      for (index_t r = 0; r < num_bases(b, h); ++r)
        require(starts(b, h, r) < key.shape[2], kName,
                "starts holds " + std::to_string(starts(b, h, r)) + "; expected less than the " +
                    std::to_string(key.shape[2]) + " keys");

  std::atomic<bool> finite{true};
  for_each_head(exec, batch * query_heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const index_t count = num_bases(b, h), channels = round_up(head_dim, simd.lanes);
    const View<const T, 2> queries = head_view(query, b, h), keys = head_view(key, b, g);
    Buffer<T> first_keys(count * channels);
    for (index_t r = 0; r < count; ++r)
      pack_rows(keys, starts(b, h, r), starts(b, h, r) + 1, channels,
                first_keys.data() + r * channels);
    // A tile of query rows meets every strip: row i of column s is lag i - s. Rows before s stand
    // for the lags past the last row.
    const auto fill_tile = [&](index_t first, index_t last, T* rows) {
      pack_rows(queries, first, last, channels, rows);
      for (index_t r = 0; r < k; ++r) {
        const index_t start = r < count ? starts(b, h, r) : n;
        const index_t from = std::clamp(start, first, last);
        T* kernel = &kernels(b, h, r, 0);
        if (first < from) std::fill(kernel + n - start + first, kernel + n - start + from, T(0));
        if (from == last) continue;
        simd.dots({rows + (from - first) * channels, channels}, last - from,
                  first_keys.data() + r * channels, channels, static_cast<T>(scale),
                  kernel + from - start);
        if (!simd.all_finite(kernel + from - start, last - from))
          finite.store(false, std::memory_order_relaxed);
      }
    };
    parallel_for(inside, ceil_div(n, kItemsPerTask), [&](index_t task, int) {
      const index_t end = std::min((task + 1) * kItemsPerTask, n);
      Buffer<T> rows(kTile * channels);
      for (index_t first = task * kItemsPerTask; first < end; first += kTile)
        fill_tile(first, std::min(first + kTile, end), rows.data());
    });
  });
  return finite;
}

template <class T>
ConvBasis<T> recover_basis(View<const T, 4> query, View<const T, 4> key, double scale,
                           const RecoverOptions& options, const Exec& exec) {
  const StripStarts found = recover_starts(query, key, scale, options, exec);
  const index_t n = query.shape[2];
  ConvBasis<T> basis{found.batch,  found.heads,     found.max_bases, n, std::min(n, key.shape[2]),
                     found.starts, found.num_bases, found.complete,  {}};
  basis.kernels.resize(static_cast<std::size_t>(found.batch * found.heads * found.max_bases * n));
  const BasisView<T> view = basis.view();
  recover_kernels(query, key, view.starts, view.num_bases, scale,
                  contiguous_view<T, 4>(basis.kernels.data(), view.kernels.shape), exec);
  return basis;
}

#define CONVBASIS_INSTANTIATE(T)                                                            \
  template StripStarts recover_starts(View<const T, 4>, View<const T, 4>, double,           \
                                      const RecoverOptions&, const Exec&);                  \
  template bool recover_kernels(View<const T, 4>, View<const T, 4>, View<const index_t, 3>, \
                                View<const index_t, 2>, double, View<T, 4>, const Exec&);   \
  template ConvBasis<T> recover_basis(View<const T, 4>, View<const T, 4>, double,           \
                                      const RecoverOptions&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
