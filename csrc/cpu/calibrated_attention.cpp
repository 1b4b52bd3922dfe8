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
    if (head.found.has_far) draw_ = head.far.draw(selection_, block);
    drawn_ = exact_ + head.heavy_count();
    stride_ = round_up(drawn_ + static_cast<index_t>(draw_.keys.size()), 16);
    scores_ = Buffer<T>(kKeyBlock * stride_);
  }

  void run(const View<T, 2>& out, const View<T, 1>& lse) {
    score();
    hide_heavy();
    const index_t channels = h_.head.channels;
    Buffer<T> result(kKeyBlock * channels);
    double factors[kKeyBlock], sums[kKeyBlock];
    T tops[kKeyBlock];
    for (index_t r = 0; r < count_; ++r) weigh(r, tops[r], sums[r], factors[r]);
    T scale = 0;
    for_each_range([&](const KeyRange& range, index_t column) {
      blas::multiply<T>(count_, channels, range.last - range.first, T(1),
                        {scores_.data() + column, stride_},
                        {h_.head.value.rows.row(range.first), h_.head.value.rows.stride}, scale,
                        {result.data(), channels});
      scale = 1;
    });
    if (h_.heavy_count() > 0)
      blas::multiply<T>(count_, channels, h_.heavy_count(), T(1),
                        {scores_.data() + exact_, stride_}, {h_.heavy_values.data(), channels},
                        scale, {result.data(), channels});
    for (index_t r = 0; r < count_; ++r) {
      T* row = result.data() + r * channels;
      if (factors[r] > 0) {
        const T* far = h_.far_sums->row(first_ + r);
        const T factor = static_cast<T>(factors[r]);
        for (index_t c = 0; c < channels; ++c) row[c] += factor * far[c];
      }
      kernels<T>().scale(row, static_cast<T>(1 / sums[r]), channels);
      write_row(row, out, first_ + r, h_.head.value.unscale);
      if (lse.data != nullptr)
        lse(first_ + r) = static_cast<T>(static_cast<double>(tops[r]) + std::log(sums[r]));
    }
  }

 private:
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
  void weigh(index_t r, T& top, double& sum, double& factor) {
    const Kernels<T>& simd = kernels<T>();
    const index_t row = first_ + r, drawn = static_cast<index_t>(draw_.keys.size());
    T* scores = scores_.data() + r * stride_;
    std::fill(scores + exact_ - (count_ - 1 - r), scores + exact_,  // later keys of the own block
              -std::numeric_limits<T>::infinity());
    const auto& heavy = h_.found.heavy;
    const index_t seen = std::upper_bound(heavy.begin(), heavy.end(), row) - heavy.begin();
    std::fill(scores + exact_ + seen, scores + drawn_, -std::numeric_limits<T>::infinity());
    top = simd.max_value(scores, drawn_ + drawn);
    require(!std::isinf(top), kName,
            "query has logits with key that overflow; expected finite products in the computing "
            "type; got infinite ones");
    sum = simd.exp_sum(scores, top, drawn_);
    factor = 0;
    if (drawn == 0) return;
    simd.exp_shifted(scores + drawn_, top, scores + drawn_, drawn);
    factor = h_.far.factor(draw_, row, scores + drawn_);
    double model = 0;
    for_each_range([&](const KeyRange& range, index_t column) {
      const index_t last = std::min(range.last, row + 1);
      model += h_.far.subtract(row, factor, range.first, last, scores + column);
    });
    sum += factor * (static_cast<double>(h_.far_sums->row(row)[h_.head.channels]) - model);
  }

  const CalibratedHead<T>& h_;
  index_t first_, count_, exact_ = 0, drawn_ = 0, stride_ = 0;
  KeySelection selection_;
  FarDraw<T> draw_;
  Buffer<T> scores_;
};

template <class T>
View<T, 1> lse_of(const View<T, 3>& lse, index_t batch, index_t head) {
  if (lse.data == nullptr) return {};
  return {
      lse.data + batch * lse.strides[0] + head * lse.strides[1], {lse.shape[2]}, {lse.strides[2]}};
}

}  // namespace

template <class T>
void calibrated_attention(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                          const Calibration<T>& calibration, std::span<const char> exact,
                          View<T, 4> out, View<T, 3> lse, const AttentionOptions& attention,
                          const Exec& exec) {
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "query", query.shape,
                {calibration.batch, calibration.query_heads, calibration.rows, head_dim},
                "to match the calibration");
  require(key.shape[2] == n, kName, "key has another length than query; expected the same");
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match query");
  const index_t groups = calibration.groups;
  require(static_cast<index_t>(exact.size()) == batch * query_heads * groups, kName,
          "exact has another length than there are groups of rows; expected one entry for each");
  const VisibleKeys causal(true, n);
  for_each_head(exec, batch * query_heads, [&](index_t flat, const Exec& inside) {
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const View<const T, 2> q = head_view(query, b, h), k = head_view(key, b, g);
    const View<const T, 2> v = head_view(value, b, g);
    const View<T, 2> y = head_view(out, b, h);
    const View<T, 1> l = lse_of(lse, b, h);
    std::vector<index_t> exact_rows, blocks;
    for (index_t group = 0; group < groups; ++group) {
      const index_t begin = group * calibration.group_rows;
      const index_t end = group + 1 == groups ? n : begin + calibration.group_rows;
      if (exact[at(flat * groups + group)] != 0) {
        for (index_t i = begin; i < end; ++i) exact_rows.push_back(i);
      } else {
        for (index_t i = begin; i < end; i += kKeyBlock) blocks.push_back(i / kKeyBlock);
      }
    }
    const double scale = scale_of(attention, head_dim);
    if (!exact_rows.empty()) exact_head<T>(q, k, v, scale, causal, exact_rows, y, l, inside);
    if (blocks.empty()) return;
    const HeadArrays<T> arrays(q, k, v, scale, inside);
    const CalibratedHead<T> head(arrays, calibration, flat, inside);
    parallel_for(inside, static_cast<index_t>(blocks.size()),
                 [&](index_t item, int) { BlockAttention<T>(head, blocks[at(item)]).run(y, l); });
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                               \
  template void calibrated_attention(View<const T, 4>, View<const T, 4>, View<const T, 4>,     \
                                     const Calibration<T>&, std::span<const char>, View<T, 4>, \
                                     View<T, 3>, const AttentionOptions&, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
