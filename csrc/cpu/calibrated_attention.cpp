#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "convbasis/calibrate.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/blas.h"
#include "cpu/dense_rows.h"
#include "cpu/exact_head.h"
#include "cpu/key_selection.h"
#include "cpu/strips.h"

namespace convbasis {
namespace {

constexpr const char* kName = "conv_attention";

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// In as many sums as fit a vector, whatever the instruction set.
template <class T>
T dot(const T* x, const T* y, index_t n) {
  constexpr index_t kSums = 16;
  T sums[kSums] = {}, total = 0;
  index_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (index_t l = 0; l < kSums; ++l) sums[l] += x[i + l] * y[i + l];
  for (; i < n; ++i) total += x[i] * y[i];
  for (const T sum : sums) total += sum;
  return total;
}

/// What the far keys of each row come to with alpha 1, all keys that are not heavy taken for far:
/// value channels, then the weight.
template <class T>
class FarSums {
 public:
  FarSums(const HeadArrays<T>& head, const HeadCalibration<T>& calibrated, const Exec& exec)
      : channels_(round_up(head.channels + 1, kernels<T>().lanes)), sums_(head.n * channels_) {
    Buffer<T> weighted(head.n * channels_);
    for_each_row(exec, head.n, [&](index_t j) {
      const T weight = calibrated.key_weights[at(j)];
      T* to = weighted.data() + j * channels_;
      for (index_t c = 0; c < head.channels; ++c) to[c] = weight * head.value.rows.row(j)[c];
      to[head.channels] = weight;
      std::fill(to + head.channels + 1, to + channels_, T(0));
    });
    const StripMatrix<T> lags{{head.n, head.n, {0}}, {calibrated.lag_weights.data(), head.n}};
    const Schedule schedule = choose_schedule(lags.layout, channels_, cost_model<T>());
    StageSeconds seconds;
    multiply_strips<T>(lags, schedule, false, {weighted.data(), channels_},
                       {sums_.data(), channels_}, channels_, exec, seconds);
  }
  [[nodiscard]] const T* row(index_t i) const { return sums_.data() + i * channels_; }

 private:
  index_t channels_;
  Buffer<T> sums_;
};

/// What all query blocks of a head share.
template <class T>
struct CalibratedHead {
  CalibratedHead(const HeadArrays<T>& arrays, const Calibration<T>& calibration, index_t flat,
                 const Exec& exec)
      : head(arrays),
        all(calibration),
        found(calibration.heads[at(flat)]),
        far(calibration, found, flat),
        heavy_rows(gather(arrays.key, arrays.head_dim, found.heavy)),
        heavy_values(gather(arrays.value.rows, arrays.channels, found.heavy)),
        heavy_keys({heavy_rows.data(), arrays.head_dim}, heavy_count(), arrays.head_dim, exec) {
    if (found.has_far) far_sums.emplace(arrays, found, exec);
  }

  static Buffer<T> gather(Rows<const T> rows, index_t columns, const std::vector<index_t>& listed) {
    Buffer<T> gathered(static_cast<index_t>(listed.size()) * columns);
    T* to = gathered.data();
    for (const index_t row : listed) to = std::copy_n(rows.row(row), columns, to);
    return gathered;
  }
  [[nodiscard]] index_t heavy_count() const { return static_cast<index_t>(found.heavy.size()); }

  const HeadArrays<T>& head;
  const Calibration<T>& all;
  const HeadCalibration<T>& found;
  FarKeys<T> far;
  Buffer<T> heavy_rows, heavy_values;
  Panels<T> heavy_keys;
  std::optional<FarSums<T>> far_sums;
};

/// The rows of one query block. Columns of its scores are the exact keys, range after range, then
/// the heavy keys, then those drawn from the far ones.
template <class T>
class BlockAttention {
 public:
  BlockAttention(const CalibratedHead<T>& head, index_t block)
      : h_(head),
        first_(block * kKeyBlock),
        count_(std::min(kKeyBlock, head.head.n - first_)),
        selection_(select_keys(head.all, head.found, block)) {
    for (const KeyRange& range : selection_.exact) exact_ += range.last - range.first;
    draw_ = head.far.draw(selection_, block);
    drawn_ = exact_ + head.heavy_count();
    stride_ = round_up(drawn_ + static_cast<index_t>(draw_.keys.size()), 16);
    scores_ = Buffer<T>(kKeyBlock * stride_);
    head.far.add_up(draw_, first_, count_, models_);
  }

  void run(const View<T, 2>& out, const View<T, 1>& lse, const View<T, 1>& far_share) {
    score();
    hide_heavy();
    const index_t channels = h_.head.channels;
    Buffer<T> result(kKeyBlock * channels);
    RowWeights weights[kKeyBlock];
    for (index_t r = 0; r < count_; ++r) weights[r] = weigh(r);
    // As many keys as BLAS multiplies with without packing them, see panel_rows.
    const index_t most =
        std::max(1'000'000 / (kKeyBlock * std::max<index_t>(channels, 1)) / 32 * 32, kKeyBlock);
    T scale = 0;
    for_each_range([&](const KeyRange& range, index_t column) {
      for (index_t key = range.first; key < range.last; key += most) {
        const index_t keys = std::min(most, range.last - key);
        blas::multiply<T>(count_, channels, keys, T(1),
                          {scores_.data() + column + key - range.first, stride_},
                          {h_.head.value.rows.row(key), h_.head.value.rows.stride}, scale,
                          {result.data(), channels});
        scale = 1;
      }
    });
    if (h_.heavy_count() > 0)
      blas::multiply<T>(count_, channels, h_.heavy_count(), T(1),
                        {scores_.data() + exact_, stride_}, {h_.heavy_values.data(), channels},
                        scale, {result.data(), channels});
    for (index_t r = 0; r < count_; ++r) {
      T* row = result.data() + r * channels;
      const RowWeights& weight = weights[r];
      if (weight.factor > 0) {
        const T* far = h_.far_sums->row(first_ + r);
        const T factor = static_cast<T>(weight.factor);
        for (index_t c = 0; c < channels; ++c) row[c] += factor * far[c];
      }
      kernels<T>().scale(row, static_cast<T>(1 / weight.sum), channels);
      write_row(row, out, first_ + r, h_.head.value.unscale);
      far_share(first_ + r) = static_cast<T>(1 / (1 + weight.exact / weight.far));  // far <= inf
      if (lse.data != nullptr)
        lse(first_ + r) = static_cast<T>(static_cast<double>(weight.top) + std::log(weight.sum));
    }
  }

 private:
  /// Of a row, relative to exp(top).
  struct RowWeights {
    T top;
    double exact, far;   ///< of the exact keys, and an estimate for the others
    double factor, sum;  ///< alpha, and what the row is divided by
  };

  template <class Part>
  void for_each_range(const Part& part) const {
    index_t column = 0;
    for (const KeyRange& range : selection_.exact) {
      part(range, column);
      column += range.last - range.first;
    }
  }

  void score() {
    const HeadArrays<T>& head = h_.head;
    Buffer<T> query(count_ * head.head_dim);
    std::vector<index_t> rows(at(count_));
    for (index_t r = 0; r < count_; ++r) rows[at(r)] = first_ + r;
    head.pack_query(rows, query.data());
    const Rows<const T> left{query.data(), head.head_dim};
    for_each_range([&](const KeyRange& range, index_t column) {
      head.keys.multiply(left, count_, range.first, range.last, scores_.data() + column, stride_);
    });
    h_.heavy_keys.multiply(left, count_, 0, h_.heavy_count(), scores_.data() + exact_, stride_);
    if (draw_.keys.empty()) return;
    const Buffer<T> keys = CalibratedHead<T>::gather(head.key, head.head_dim, draw_.keys);
    blas::multiply_transposed<T>(count_, static_cast<index_t>(draw_.keys.size()), head.head_dim,
                                 T(1), {query.data(), head.head_dim}, {keys.data(), head.head_dim},
                                 {scores_.data() + drawn_, stride_});
  }

  /// Heavy keys have columns of their own.
  void hide_heavy() {
    auto key = h_.found.heavy.begin();
    for_each_range([&](const KeyRange& range, index_t column) {
      key = std::lower_bound(key, h_.found.heavy.end(), range.first);
      for (; key != h_.found.heavy.end() && *key < range.last; ++key)
        for (index_t r = 0; r < count_; ++r)
          scores_[r * stride_ + column + *key - range.first] = -std::numeric_limits<T>::infinity();
    });
  }

  /// Scores of a row become its weights, from which the far model is taken off where keys are
  /// exact.
  RowWeights weigh(index_t r) {
    const Kernels<T>& simd = kernels<T>();
    const index_t row = first_ + r, drawn = static_cast<index_t>(draw_.keys.size());
    T* scores = scores_.data() + r * stride_;
    std::fill(scores + exact_ - (count_ - 1 - r), scores + exact_,  // later keys of the own block
              -std::numeric_limits<T>::infinity());
    const auto& heavy = h_.found.heavy;
    const index_t seen = std::upper_bound(heavy.begin(), heavy.end(), row) - heavy.begin();
    std::fill(scores + exact_ + seen, scores + drawn_, -std::numeric_limits<T>::infinity());
    const double whole =
        h_.found.has_far ? static_cast<double>(h_.far_sums->row(row)[h_.head.channels]) : 0;
    const bool is_modelled = h_.found.has_far && draw_.is_modelled(models_[r], whole);
    const T near = simd.max_value(scores, drawn_);
    const T highest = drawn > 0 ? std::max(near, simd.max_value(scores + drawn_, drawn)) : near;
    const T top = is_modelled ? highest : near;  // of what counts, so that some weight is 1
    const auto is_nan = [](T score) { return std::isnan(score); };  // and so is the row then
    require(!(std::isinf(top) || std::isinf(highest)) ||
                std::any_of(scores, scores + drawn_ + drawn, is_nan),
            kName,
            "query has logits with key that overflow; expected finite products in the computing "
            "type; got infinite ones");
    const double exact = simd.exp_sum(scores, top, drawn_);
    if (drawn == 0) return {top, exact, 0, 0, exact};
    simd.exp_shifted(scores + drawn_, top, scores + drawn_, drawn);
    const T seen_far = dot(scores + drawn_, draw_.reciprocals.data(), drawn);
    const double far = static_cast<double>(seen_far) * draw_.step;
    if (!is_modelled) return {top, exact, far, 0, exact};
    const double factor = static_cast<double>(seen_far / models_[r]);
    double taken = 0;
    for_each_range([&](const KeyRange& range, index_t column) {
      const index_t last = std::min(range.last, row + 1);
      taken += h_.far.subtract(row, factor, range.first, last, scores + column);
    });
    // What is left is above 0, but for rounding.
    const double left =
        whole > taken ? whole - taken : static_cast<double>(models_[r]) * draw_.step;
    return {top, exact, far, factor, exact + factor * left};
  }

  const CalibratedHead<T>& h_;
  index_t first_, count_, exact_ = 0, drawn_ = 0, stride_ = 0;
  KeySelection selection_;
  FarDraw<T> draw_;
  Buffer<T> scores_;
  T models_[kKeyBlock];  ///< of the drawn keys, by row
};

template <class T>
void require_self_attention(const View<const T, 4>& query, const View<const T, 4>& key,
                            const View<const T, 4>& value, const View<T, 4>& out,
                            const View<T, 3>& lse) {
  require_attention(kName, query, key, value);
  const auto [batch, heads, n, head_dim] = query.shape;
  require(key.shape[2] == n, kName,
          "key has " + std::to_string(key.shape[2]) + " rows; expected as many as query");
  require_shape(kName, "out", out.shape, {batch, heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, heads, n}, "to match query");
}

}  // namespace

template <class T>
void calibrated_attention(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                          const Calibration<T>& calibration, View<T, 4> out, View<T, 3> lse,
                          View<T, 3> far_share, const AttentionOptions& attention,
                          std::span<const index_t> heads, const Exec& exec) {
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_self_attention(query, key, value, out, lse);
  require_shape(kName, "query", query.shape,
                {calibration.batch, calibration.query_heads, calibration.rows, head_dim},
                "to match the calibration");
  require_shape(kName, "far_share", far_share.shape, {batch, query_heads, n}, "to match query");
  const HeadList list(kName, heads, batch * query_heads);
  const auto shared = key_arrays(key, value, exec);
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const auto [b, h, g] = head_index(list[i], query_heads, key.shape[1]);
    const HeadArrays<T> arrays(head_view(query, b, h), *shared[at(b * key.shape[1] + g)],
                               value.shape[3], scale_of(attention, head_dim));
    const CalibratedHead<T> head(arrays, calibration, list[i], inside);
    const index_t blocks = ceil_div(n, kKeyBlock);
    parallel_for(inside, blocks, [&](index_t block, int) {
      BlockAttention<T>(head, block)
          .run(head_view(out, b, h), row_view(lse, b, h), row_view(far_share, b, h));
    });
  });
}

template <class T>
void exact_blocks(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                  std::span<const char> blocks, View<T, 4> out, View<T, 3> lse,
                  const AttentionOptions& attention, const Exec& exec) {
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_self_attention(query, key, value, out, lse);
  const index_t count = ceil_div(n, kKeyBlock);
  require(static_cast<index_t>(blocks.size()) == batch * query_heads * count, kName,
          "blocks has " + std::to_string(blocks.size()) + " entries; expected one for each block");
  const VisibleKeys causal(true, n);
  const auto shared = key_arrays(key, value, exec);
  for_each_head(exec, batch * query_heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    std::vector<index_t> rows;
    for (index_t i = 0; i < n; ++i)
      if (blocks[at(flat * count + i / kKeyBlock)] != 0) rows.push_back(i);
    if (rows.empty()) return;
    exact_head<T>(head_view(query, b, h), *shared[at(b * key.shape[1] + g)],
                  scale_of(attention, head_dim), causal, rows, head_view(out, b, h),
                  row_view(lse, b, h), inside);
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                               \
  template void calibrated_attention(                                                          \
      View<const T, 4>, View<const T, 4>, View<const T, 4>, const Calibration<T>&, View<T, 4>, \
      View<T, 3>, View<T, 3>, const AttentionOptions&, std::span<const index_t>, const Exec&); \
  template void exact_blocks(View<const T, 4>, View<const T, 4>, View<const T, 4>,             \
                             std::span<const char>, View<T, 4>, View<T, 3>,                    \
                             const AttentionOptions&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
