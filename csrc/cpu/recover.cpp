#include "convbasis/recover.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "convbasis/cost_model.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/blas.h"
#include "cpu/rows.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

constexpr index_t kRowTile = 256, kColumnTile = 64, kHeadEntries = index_t{1} << 20;

void require_options(const char* name, const RecoverOptions& options) {
  require(
      !options.num_bases || *options.num_bases >= 1, name,
      "num_bases is " + std::to_string(options.num_bases.value_or(0)) + "; expected at least 1");
  require(options.window >= 1, name,
          "window is " + std::to_string(options.window) + "; expected at least 1");
  require(options.delta >= 0 && std::isfinite(options.delta), name,
          "delta is " + std::to_string(options.delta) + "; expected a finite number >= 0");
  const double most = options.delta / (5 * static_cast<double>(options.window));
  require(options.epsilon >= 0 && options.epsilon <= most, name,
          "epsilon is " + std::to_string(options.epsilon) +
              "; expected 0 to delta / (5 * window) = " + std::to_string(most));
}

template <class T>
void require_query_key(const char* name, const View<const T, 4>& query,
                       const View<const T, 4>& key) {
  require(query.shape[3] > 0, name, "query has head_dim 0; expected at least 1");
  require_groups(name, query.shape[1], key.shape[1]);
  require_shape(name, "key", key.shape,
                {query.shape[0], key.shape[1], key.shape[2], query.shape[3]}, "to match query");
}

/// Heads of columns of scale * Q K^T below the diagonal: head(j)[t] = scale * q_{j+t} . k_j, t < T.
template <class T>
class ColumnHeads {
 public:
  ColumnHeads(const View<const T, 2>& query, const View<const T, 2>& key, double scale,
              index_t window)
      : channels_(round_up(query.shape[1], kernels<T>().lanes)),
        window_(window),
        scale_(static_cast<T>(scale)),
        query_(as_rows(query, channels_, query_copy_)),
        key_(as_rows(key, channels_, key_copy_)) {}

  /// Heads of columns [first, last), `window` numbers each.
  void fill(index_t first, index_t last, T* heads) const {
    kernels<T>().band_dots(query_, key_, first, last, window_, channels_, scale_, heads);
  }

  /// The same of one column, `count` entries.
  void fill_one(index_t column, index_t count, T* head) const {
    kernels<T>().band_dots(query_, key_, column, column + 1, count, channels_, scale_, head);
  }

 private:
  index_t channels_, window_;
  T scale_;
  Buffer<T> query_copy_, key_copy_;
  Rows<const T> query_, key_;
};

struct Search {
  index_t columns;  ///< candidates: 0 .. n - T
  index_t window, cap;
  double threshold;  ///< delta - 2 T epsilon
  index_t rows, key_columns;
};

struct Found {
  std::vector<index_t> starts;
  bool complete = true;
};

/// Every column's head against the head of the running strip (v = head of its first column). Heads
/// are formed some columns at a time, in parallel, and compared in order.
template <class T>
Found scan(const ColumnHeads<T>& heads, const Search& search, const Exec& exec) {
  const index_t window = search.window;
  const index_t batch = std::min(std::max(kHeadEntries / window, kColumnTile), search.columns);
  Buffer<T> some(batch * window);
  std::vector<T> running(static_cast<std::size_t>(window), T(0));
  Found found;
  for (index_t first = 0; first < search.columns; first += batch) {
    const index_t last = std::min(first + batch, search.columns);
    parallel_for(exec, ceil_div(last - first, kColumnTile), [&](index_t task, int) {
      const index_t from = first + task * kColumnTile;
      heads.fill(from, std::min(from + kColumnTile, last), some.data() + (from - first) * window);
    });
    for (index_t j = first; j < last; ++j) {
      const T* head = some.data() + (j - first) * window;
      if (kernels<T>().l1_distance(head, running.data(), window) < search.threshold) continue;
      if (static_cast<index_t>(found.starts.size()) == search.cap) return {found.starts, false};
      found.starts.push_back(j);
      std::copy_n(head, window, running.data());
    }
  }
  return found;
}

/// Conv-Basis, Algorithms 2 and 3: each next start by binary search, which the (T, delta)
/// non-degeneracy makes valid.
template <class T>
Found bisect(const ColumnHeads<T>& heads, const Search& search, const Exec& exec) {
  const Kernels<T>& simd = kernels<T>();
  std::vector<T> running(static_cast<std::size_t>(search.window), T(0)), head = running;
  const auto differs = [&](index_t j) {
    parallel_for(exec, 1, [&](index_t, int) { heads.fill(j, j + 1, head.data()); });
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
    if (static_cast<index_t>(found.starts.size()) == search.cap) return {found.starts, false};
    found.starts.push_back(start = low);
    running = head;
  }
  return found;
}

/// The last T - 1 columns are too short to be candidates. A valid basis has them in its last strip;
/// when one differs from it, the strips do not tell the whole matrix. O(T^2 d).
template <class T>
bool tail_agrees(const ColumnHeads<T>& heads, const Search& search, index_t last_start,
                 const Exec& exec) {
  const index_t tails = search.key_columns - search.columns;
  if (tails <= 0) return true;
  std::vector<T> running(static_cast<std::size_t>(search.window), T(0));
  if (last_start >= 0) heads.fill(last_start, last_start + 1, running.data());
  std::atomic<bool> agrees{true};
  parallel_for(exec, tails, [&](index_t item, int) {
    if (!agrees.load(std::memory_order_relaxed)) return;
    const index_t column = search.columns + item, count = search.rows - column;
    Buffer<T> tail(count);
    heads.fill_one(column, count, tail.data());
    if (kernels<T>().l1_distance(tail.data(), running.data(), count) >= search.threshold)
      agrees.store(false, std::memory_order_relaxed);
  });
  return agrees;
}

template <class T>
Found find_strips(const ColumnHeads<T>& heads, const Search& search, const RecoverOptions& options,
                  const Exec& exec) {
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
  Search search;
  search.columns = n == 0 ? 0 : std::min(n - window + 1, key.shape[2]);
  search.window = window;
  search.cap = options.num_bases ? *options.num_bases
                                 : break_even<T>(n, head_dim, options.value_dim.value_or(head_dim));
  search.threshold = options.delta - 2 * static_cast<double>(window) * options.epsilon;
  search.rows = n;
  search.key_columns = std::min(n, key.shape[2]);

  std::vector<Found> found(static_cast<std::size_t>(batch * query_heads));
  for_each_head(exec, batch * query_heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const ColumnHeads<T> heads(head_view(query, b, h), head_view(key, b, g), scale, window);
    found[static_cast<std::size_t>(flat)] = find_strips(heads, search, options, inside);
  });

  StripStarts result{batch, query_heads, 0, {}, {}, {}};
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
void recover_kernels(View<const T, 4> query, View<const T, 4> key, View<const index_t, 3> starts,
                     View<const index_t, 2> num_bases, double scale, View<T, 4> kernels,
                     const Exec& exec) {
  constexpr const char* kName = "recover_kernels";
  require_query_key(kName, query, key);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const index_t k = kernels.shape[2];
  require_shape(kName, "kernels", kernels.shape, {batch, query_heads, k, n}, "to match query");
  require_basis<T>(kName, {starts, num_bases, kernels, std::min(n, key.shape[2])});

  for (index_t b = 0; b < batch; ++b)
    for (index_t h = 0; h < query_heads; ++h)
      for (index_t r = 0; r < num_bases(b, h); ++r)
        require(starts(b, h, r) < key.shape[2], kName,
                "starts holds " + std::to_string(starts(b, h, r)) + "; expected less than the " +
                    std::to_string(key.shape[2]) + " keys");

  for_each_head(exec, batch * query_heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const index_t count = num_bases(b, h);
    if (count == 0) return;
    Buffer<T> query_copy, first_keys(count * head_dim);
    const Rows<const T> q = as_rows(head_view(query, b, h), query_copy);
    for (index_t r = 0; r < count; ++r)
      for (index_t c = 0; c < head_dim; ++c)
        first_keys[r * head_dim + c] = key(b, g, starts(b, h, r), c);
    // A tile of query rows meets the strips that have begun: row i of column s is lag i - s.
    parallel_for(inside, ceil_div(n, kRowTile), [&](index_t task, int) {
      const index_t first = task * kRowTile, last = std::min(first + kRowTile, n);
      index_t begun = 0;
      while (begun < count && starts(b, h, begun) < last) ++begun;
      Buffer<T> product(begun * kRowTile);
      blas::multiply_transposed<T>(begun, last - first, head_dim, static_cast<T>(scale),
                                   {first_keys.data(), head_dim}, {q.row(first), q.stride},
                                   {product.data(), kRowTile});
      for (index_t r = 0; r < begun; ++r) {
        const index_t start = starts(b, h, r), from = std::max(first, start);
        std::copy_n(product.data() + r * kRowTile + (from - first), last - from,
                    &kernels(b, h, r, from - start));
      }
    });
    for (index_t r = 0; r < count; ++r) {
      const index_t start = starts(b, h, r);
      if (start > 0) std::fill_n(&kernels(b, h, r, n - start), start, T(0));
    }
  });
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
  template void recover_kernels(View<const T, 4>, View<const T, 4>, View<const index_t, 3>, \
                                View<const index_t, 2>, double, View<T, 4>, const Exec&);   \
  template ConvBasis<T> recover_basis(View<const T, 4>, View<const T, 4>, double,           \
                                      const RecoverOptions&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
