#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "convbasis/calibrate.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/blas.h"
#include "cpu/key_selection.h"
#include "cpu/self_attention.h"

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

/// What all query blocks of a head share.
template <class T>
struct CalibratedHead {
  CalibratedHead(const HeadArrays<T>& arrays, const Calibration<T>& calibration, index_t flat,
                 const Exec& exec)
      : head(arrays),
        all(calibration),
        found(calibration.heads[at(flat)]),
        far(calibration, found, flat, arrays.value.rows, arrays.channels),
        heavy_rows(gather(arrays.key, arrays.head_dim, found.heavy)),
        heavy_values(gather(arrays.value.rows, arrays.channels, found.heavy)),
        heavy_keys({heavy_rows.data(), arrays.head_dim}, heavy_count(), arrays.head_dim, exec) {}

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
};

/// The rows of one query block. Columns of its scores are the exact keys, range after range, then
/// the heavy keys, those at single lags, and those drawn from the far ones.
template <class T>
class BlockAttention {
 public:
  BlockAttention(const CalibratedHead<T>& head, index_t block)
      : h_(head),
        block_(block),
        first_(block * kKeyBlock),
        count_(std::min(kKeyBlock, head.head.n - first_)),
        selection_(select_keys(head.all, head.found, block)),
        query_(count_ * head.head.head_dim),
        far_(head.head.channels + 1) {
    for (const KeyRange& range : selection_.exact) exact_ += range.last - range.first;
    draw_ = head.far.draw(selection_, block);
    head.far.add_up(selection_, block, far_.data());
    lagged_ = exact_ + head.heavy_count();
    drawn_ = lagged_ + static_cast<index_t>(head.found.lags.size());
    stride_ = round_up(drawn_ + drawn(), 16);
    scores_ = Buffer<T>(kKeyBlock * stride_);
  }

  void run(const View<T, 2>& out, const View<T, 1>& lse, const View<T, 1>& far_share,
           const View<double, 1>& norms) {
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
      double sum = weight.exact;
      if (weight.alpha > 0) {
        add(weight.alpha, far_.data(), row);
        sum += static_cast<double>(weight.alpha) * static_cast<double>(far_[channels]);
      }
      for_each_lag(r, [&](index_t key, index_t column) {
        const T model = weight.alpha * h_.far.weight(block_, key);
        add(scores_[r * stride_ + column] - model, h_.head.value.rows.row(key), row);
        sum -= static_cast<double>(model);
      });
      kernels<T>().scale(row, static_cast<T>(1 / sum), channels);
      write_row(row, out, first_ + r, h_.head.value.unscale);
      far_share(first_ + r) = static_cast<T>(1 / (1 + weight.exact / weight.far));  // far <= inf
      if (lse.data != nullptr)
        lse(first_ + r) = static_cast<T>(static_cast<double>(weight.top) + std::log(sum));
    }
    T peaks[kKeyBlock];
    double lengths[kKeyBlock];
    kernels<T>().measure_rows({result.data(), channels}, count_, channels, peaks, lengths);
    for (index_t r = 0; r < count_; ++r)
      norms(first_ + r) = std::min(static_cast<double>(h_.head.value.unscale) * lengths[r],
                                   std::numeric_limits<double>::max());
  }

 private:
  /// Of a row, relative to exp(top).
  struct RowWeights {
    T top, alpha;
    double exact, far;  ///< sums over the exact keys, and an estimate of that over the others
  };

  [[nodiscard]] index_t drawn() const { return static_cast<index_t>(draw_.keys.size()); }

  void add(T factor, const T* from, T* to) const {
    for (index_t c = 0; c < h_.head.channels; ++c) to[c] += factor * from[c];
  }

  template <class Part>
  void for_each_range(const Part& part) const {
    index_t column = 0;
    for (const KeyRange& range : selection_.exact) {
      part(range, column);
      column += range.last - range.first;
    }
  }

  /// Keys of a row at single lags that are not exact for another reason.
  template <class Part>
  void for_each_lag(index_t r, const Part& part) const {
    const auto& heavy = h_.found.heavy;
    for (std::size_t l = 0; l < h_.found.lags.size(); ++l) {
      const index_t key = first_ + r - h_.found.lags[l];
      if (key < 0) break;
      if (selection_.is_far(key) && !std::binary_search(heavy.begin(), heavy.end(), key))
        part(key, lagged_ + static_cast<index_t>(l));
    }
  }

  void score() {
    const HeadArrays<T>& head = h_.head;
    std::vector<index_t> rows(at(count_));
    for (index_t r = 0; r < count_; ++r) rows[at(r)] = first_ + r;
    head.pack_query(rows, query_.data());
    const Rows<const T> left{query_.data(), head.head_dim};
    for_each_range([&](const KeyRange& range, index_t column) {
      head.keys.multiply(left, count_, range.first, range.last, scores_.data() + column, stride_);
    });
    h_.heavy_keys.multiply(left, count_, 0, h_.heavy_count(), scores_.data() + exact_, stride_);
    for (index_t r = 0; r < count_ && lagged_ < drawn_; ++r) {
      T* row = scores_.data() + r * stride_;
      std::fill(row + lagged_, row + drawn_, -std::numeric_limits<T>::infinity());
      for_each_lag(r, [&](index_t key, index_t column) {
        row[column] = dot(query_.data() + r * head.head_dim, head.key.row(key), head.head_dim);
      });
    }
    if (draw_.keys.empty()) return;
    const Buffer<T> keys = CalibratedHead<T>::gather(head.key, head.head_dim, draw_.keys);
    blas::multiply_transposed<T>(count_, drawn(), head.head_dim, T(1),
                                 {query_.data(), head.head_dim}, {keys.data(), head.head_dim},
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

  /// Scores of a row become its weights.
  RowWeights weigh(index_t r) {
    const Kernels<T>& simd = kernels<T>();
    const index_t row = first_ + r;
    T* scores = scores_.data() + r * stride_;
    std::fill(scores + exact_ - (count_ - 1 - r), scores + exact_,  // later keys of the own block
              -std::numeric_limits<T>::infinity());
    const auto& heavy = h_.found.heavy;
    const index_t seen = std::upper_bound(heavy.begin(), heavy.end(), row) - heavy.begin();
    std::fill(scores + exact_ + seen, scores + lagged_, -std::numeric_limits<T>::infinity());
    const T near = simd.max_value(scores, drawn_);
    const T highest = drawn() > 0 ? std::max(near, simd.max_value(scores + drawn_, drawn())) : near;
    const T top = h_.found.has_far ? highest : near;  // of what counts, so that some weight is 1
    const auto is_nan = [](T score) { return std::isnan(score); };  // and so is the row then
    require(!(std::isinf(top) || std::isinf(highest)) ||
                std::any_of(scores, scores + drawn_ + drawn(), is_nan),
            kName,
            "query has logits with key that overflow; expected finite products in the computing "
            "type; got infinite ones");
    const double exact = simd.exp_sum(scores, top, drawn_);
    if (drawn() == 0) return {top, 0, exact, 0};
    simd.exp_shifted(scores + drawn_, top, scores + drawn_, drawn());
    index_t count = drawn();
    for_each_lag(r, [&](index_t key, index_t) {  // exact, in this row
      const auto [begin, end] = std::equal_range(draw_.keys.begin(), draw_.keys.end(), key);
      for (auto it = begin; it != end; ++it, --count)
        scores[drawn_ + (it - draw_.keys.begin())] = 0;
    });
    const T ratios = dot(scores + drawn_, draw_.reciprocals.data(), drawn());
    const T alpha = h_.found.has_far && count > 0 ? ratios / static_cast<T>(count) : T(0);
    return {top, alpha, exact, static_cast<double>(ratios) * draw_.step};
  }

  const CalibratedHead<T>& h_;
  index_t block_, first_, count_, exact_ = 0, lagged_ = 0, drawn_ = 0, stride_ = 0;
  KeySelection selection_;
  FarDraw<T> draw_;
  Buffer<T> query_, scores_;
  Buffer<T> far_;  ///< sums of the model with alpha 1
};

}  // namespace

template <class T>
void calibrated_attention(const SelfAttention<T>& attention, const Calibration<T>& calibration,
                          View<T, 4> out, View<T, 3> lse, View<T, 3> far_share,
                          View<double, 3> norms, std::span<const index_t> heads, const Exec& exec) {
  const auto& arrays = attention.arrays();
  const std::array<index_t, 3> rows{arrays.batch(), arrays.heads(), arrays.rows()};
  require(rows == std::array{calibration.batch, calibration.query_heads, calibration.rows}, kName,
          "calibration is of other arrays; expected one of these");
  arrays.require_results(kName, out, lse);
  require_shape(kName, "far_share", far_share.shape, rows, "to match query");
  require_shape(kName, "norms", norms.shape, rows, "to match query");
  const HeadList list(kName, heads, arrays.count());
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const HeadIndex at = arrays.at(list[i]);
    const HeadArrays<T> head_arrays = arrays.head(list[i]);
    const CalibratedHead<T> head(head_arrays, calibration, list[i], inside);
    parallel_for(inside, ceil_div(arrays.rows(), kKeyBlock), [&](index_t block, int) {
      BlockAttention<T>(head, block)
          .run(head_view(out, at.batch, at.head), row_view(lse, at.batch, at.head),
               row_view(far_share, at.batch, at.head), row_view(norms, at.batch, at.head));
    });
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                                 \
  template void calibrated_attention(const SelfAttention<T>&, const Calibration<T>&, View<T, 4>, \
                                     View<T, 3>, View<T, 3>, View<double, 3>,                    \
                                     std::span<const index_t>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
