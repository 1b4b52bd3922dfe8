#include "convbasis/logit_range.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/buffer.h"
#include "core/shape.h"
#include "core/thread_pool.h"
#include "cpu/simd/kernels.h"

namespace convbasis {
namespace {

constexpr index_t kRowsPerTask = 1024;
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Sizes, checked.
struct Sizes {
  index_t batch, heads, kv_heads, queries, keys, head_dim;
  index_t seen;  ///< keys that some query sees
};

template <class T>
Sizes sizes_of(const char* function, const View<const T, 4>& query, const View<const T, 4>& key,
               const AttentionOptions& options) {
  require_attention(function, query, key, key);
  const index_t queries = query.shape[2], keys = key.shape[2];
  return {query.shape[0],
          query.shape[1],
          key.shape[1],
          queries,
          keys,
          query.shape[3],
          options.is_causal ? std::min(queries, keys) : keys};
}

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A norm in double, as a bound of the true one and of what type T makes of the row: each element
/// is a difference or a product rounded once in T, the norm one of head_dim terms in double.
template <class T>
double bound_of(double norm, index_t head_dim) {
  if (norm == 0) return 0;
  constexpr double kOne = std::numeric_limits<double>::epsilon();
  constexpr double kInType = std::numeric_limits<T>::epsilon();
  return norm * (1 + 2 * kInType + static_cast<double>(head_dim + 8) * kOne) +
         std::numeric_limits<double>::denorm_min();
}

/// A product that does not vanish by underflow, and has no bound if a factor has none.
double product(double a, double b) {
  if (std::isinf(a) || std::isinf(b)) return kInfinity;
  if (a == 0 || b == 0) return 0;
  return a * b * (1 + std::numeric_limits<double>::epsilon()) +
         std::numeric_limits<double>::denorm_min();
}

/// Sums of channels over the keys that count, by blocks in a fixed order, each times `factor`, so
/// that they do not overflow.
template <class T>
void mean_key(const View<const T, 2>& key, const View<const bool, 1>& left_out, index_t seen,
              const Exec& exec, T* mean) {
  const index_t blocks = ceil_div(seen, kRowsPerTask), d = key.shape[1];
  const double factor =
      std::ldexp(1.0, -std::ilogb(static_cast<double>(std::max<index_t>(seen, 1))) - 1);
  std::vector<double> sums(at(blocks * d), 0.0);
  std::vector<index_t> counts(at(blocks), 0);
  parallel_for(exec, blocks, [&](index_t block, int) {
    double* sum = sums.data() + block * d;
    for (index_t j = block * kRowsPerTask; j < std::min((block + 1) * kRowsPerTask, seen); ++j) {
      if (left_out.data != nullptr && left_out(j)) continue;
      ++counts[at(block)];
      for (index_t c = 0; c < d; ++c) sum[c] += factor * static_cast<double>(key(j, c));
    }
  });
  index_t count = 0;
  for (const index_t block : counts) count += block;
  for (index_t c = 0; c < d; ++c) {
    double sum = 0;
    for (index_t block = 0; block < blocks; ++block) sum += sums[at(block * d + c)];
    mean[c] = static_cast<T>(count > 0 ? sum / (factor * static_cast<double>(count)) : 0.0);
  }
}

/// Norms of factor * (row - centre); no centre is 0.
template <class T>
void norms_of(const View<const T, 2>& rows, index_t count, const T* centre, double factor,
              const Exec& exec, double* norms) {
  const index_t d = rows.shape[1];
  parallel_for(exec, ceil_div(count, kRowsPerTask), [&](index_t task, int) {
    Buffer<double> row(d);
    for (index_t i = task * kRowsPerTask; i < std::min((task + 1) * kRowsPerTask, count); ++i) {
      bool is_finite = true;  // NaN has no bound either
      for (index_t c = 0; c < d; ++c) {
        row[c] = static_cast<double>(rows(i, c)) - (centre ? static_cast<double>(centre[c]) : 0.0);
        is_finite = is_finite && std::isfinite(row[c]);
      }
      const double norm = is_finite ? kernels<double>().norm(row.data(), d) : kInfinity;
      norms[i] = product(std::abs(factor), bound_of<T>(norm, d));
    }
  });
}

}  // namespace

template <class T>
LogitNorms<T> logit_norms(View<const T, 4> query, View<const T, 4> key,
                          const AttentionOptions& options, View<const bool, 3> left_out,
                          const Exec& exec) {
  constexpr const char* kName = "logit_norms";
  const Sizes n = sizes_of(kName, query, key, options);
  if (left_out.data != nullptr)
    require_shape(kName, "left_out", left_out.shape, {n.batch, n.kv_heads, n.keys}, "to match key");
  const double scale = scale_of(options, n.head_dim);
  LogitNorms<T> result;
  result.centre.resize(at(n.batch * n.kv_heads * n.head_dim));
  result.key.resize(at(n.batch * n.kv_heads * n.keys));
  result.query.resize(at(n.batch * n.heads * n.queries));
  std::vector<double> longest_key(at(n.batch * n.kv_heads), 0.0);
  for (index_t flat = 0; flat < n.batch * n.kv_heads; ++flat) {
    const index_t b = flat / n.kv_heads, g = flat % n.kv_heads;
    const View<const T, 2> head = head_view(key, b, g);
    View<const bool, 1> skipped{};
    if (left_out.data != nullptr) skipped = {&left_out(b, g, 0), {n.keys}, {left_out.strides[2]}};
    T* centre = result.centre.data() + flat * n.head_dim;
    double* norms = result.key.data() + flat * n.keys;
    mean_key(head, skipped, n.seen, exec, centre);
    norms_of(head, n.seen, centre, 1.0, exec, norms);
    for (index_t j = 0; j < n.seen; ++j)
      if (skipped.data == nullptr || !skipped(j))
        longest_key[at(flat)] = std::max(longest_key[at(flat)], norms[j]);
  }
  for (index_t flat = 0; flat < n.batch * n.heads; ++flat) {
    const auto [b, h, g] = head_index(flat, n.heads, n.kv_heads);
    double* norms = result.query.data() + flat * n.queries;
    norms_of<T>(head_view(query, b, h), n.queries, nullptr, scale, exec, norms);
    double longest = 0;
    for (index_t i = 0; i < n.queries; ++i) longest = std::max(longest, norms[i]);
    result.radius.push_back(product(longest, longest_key[at(b * n.kv_heads + g)]));
  }
  return result;
}

template <class T>
std::vector<double> sampled_radius(View<const T, 4> query, View<const T, 4> key,
                                   const LogitNorms<T>& norms, index_t rows,
                                   const AttentionOptions& options, const Exec& exec) {
  constexpr const char* kName = "sampled_radius";
  const Sizes n = sizes_of(kName, query, key, options);
  require(rows >= 0, kName, "rows is " + std::to_string(rows) + "; expected at least 0");
  require(norms.centre.size() == at(n.batch * n.kv_heads * n.head_dim) &&
              norms.query.size() == at(n.batch * n.heads * n.queries) &&
              norms.key.size() == at(n.batch * n.kv_heads * n.keys),
          kName, "norms are of other arrays; expected those of query and key");
  const double scale = scale_of(options, n.head_dim);
  const index_t sampled = std::min(rows, n.queries), blocks = ceil_div(n.seen, kRowsPerTask);
  std::vector<double> result(at(n.batch * n.heads), 0.0);
  for (index_t flat = 0; flat < n.batch * n.heads; ++flat) {
    const auto [b, h, g] = head_index(flat, n.heads, n.kv_heads);
    // Channel by channel, the rows side by side, the last one first: it sees most keys.
    std::vector<index_t> chosen(at(sampled));
    Buffer<double> scaled(n.head_dim * sampled);
    for (index_t r = 0; r < sampled; ++r) {
      chosen[at(r)] = n.queries - 1 - r * n.queries / sampled;
      for (index_t c = 0; c < n.head_dim; ++c)
        scaled[c * sampled + r] = scale * static_cast<double>(query(b, h, chosen[at(r)], c));
    }
    const View<const T, 2> keys = head_view(key, b, g);
    const T* centre = norms.centre.data() + (b * n.kv_heads + g) * n.head_dim;
    const double* lengths = norms.query.data() + flat * n.queries;
    const double* key_lengths = norms.key.data() + (b * n.kv_heads + g) * n.keys;
    // Less than the true one by what rounding may have added.
    const double rounding =
        static_cast<double>(n.head_dim + 6) * std::numeric_limits<double>::epsilon();
    std::vector<double> largest(at(blocks), 0.0);
    parallel_for(exec, blocks, [&](index_t block, int) {
      Buffer<double> dots(sampled);
      for (index_t j = block * kRowsPerTask; j < std::min((block + 1) * kRowsPerTask, n.seen);
           ++j) {
        index_t seeing = sampled;
        while (options.is_causal && seeing > 0 && chosen[at(seeing - 1)] < j) --seeing;
        std::fill_n(dots.data(), seeing, 0.0);
        for (index_t c = 0; c < n.head_dim; ++c) {
          const double entry = static_cast<double>(keys(j, c)) - static_cast<double>(centre[c]);
          const double* channel = scaled.data() + c * sampled;
          for (index_t r = 0; r < seeing; ++r) dots[r] += channel[r] * entry;
        }
        for (index_t r = 0; r < seeing; ++r) {
          const double size = lengths[chosen[at(r)]] * key_lengths[j];
          if (size <= kLargest)
            largest[at(block)] = std::max(largest[at(block)], std::abs(dots[r]) - rounding * size);
        }
      }
    });
    for (const double block : largest) result[at(flat)] = std::max(result[at(flat)], block);
  }
  return result;
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template LogitNorms<T> logit_norms(View<const T, 4>, View<const T, 4>, const AttentionOptions&, \
                                     View<const bool, 3>, const Exec&);                           \
  template std::vector<double> sampled_radius(View<const T, 4>, View<const T, 4>,                 \
                                              const LogitNorms<T>&, index_t,                      \
                                              const AttentionOptions&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
