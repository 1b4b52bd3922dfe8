#include "cpu/dense_rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/shape.h"
#include "cpu/blas.h"
#include "cpu/tiles.h"

namespace convbasis {
namespace {

constexpr index_t kRowTile = 32;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

}  // namespace

template <class T>
void HeadArrays<T>::pack_query(std::span<const index_t> rows, T* to) const {
  for (const index_t row : rows) {
    pack_rows(query, row, row + 1, head_dim, to);
    kernels<T>().scale(to, static_cast<T>(scale), head_dim);
    to += head_dim;
  }
}

template <class T>
DenseRows<T>::DenseRows(const HeadArrays<T>& head, std::vector<index_t> rows, const Exec& exec)
    : head_(head), rows_(std::move(rows)), stride_(round_up(head.n, 64)) {
  const auto count = static_cast<index_t>(rows_.size());
  weights_ = Buffer<T>(count * stride_);
  sums_.resize(rows_.size());
  parallel_for(exec, ceil_div(count, kRowTile), [&](index_t tile, int) {
    const index_t first = tile * kRowTile, tile_rows = std::min(kRowTile, count - first);
    const auto listed = std::span<const index_t>(rows_).subspan(at(first), at(tile_rows));
    const index_t keys = listed.back() + 1;
    Buffer<T> query(tile_rows * head.head_dim);
    head.pack_query(listed, query.data());
    T* scores = weights_.data() + first * stride_;
    head.keys.multiply({query.data(), head.head_dim}, tile_rows, 0, keys, scores, stride_);
    for (index_t r = 0; r < tile_rows; ++r) {
      T* row = scores + r * stride_;
      const index_t seen = listed[at(r)] + 1;
      const T top = kernels<T>().max_value(row, seen);
      require(!std::isinf(top), "conv_attention",
              "query has logits with key that overflow; expected finite products in the computing "
              "type; got infinite ones");
      sums_[at(first + r)] = kernels<T>().exp_sum(row, top, seen);
      std::fill(row + seen, row + stride_, T(0));
    }
  });
}

template <class T>
void DenseRows<T>::attend(std::span<const index_t> heavy, const Exec& exec) {
  const auto count = static_cast<index_t>(rows_.size()), channels = head_.channels;
  heavy_ = Buffer<T>(count * (channels + 1));
  blocks_ = Buffer<T>(count * key_blocks() * (channels + 1));
  out_ = Buffer<T>(count * channels);
  parallel_for(exec, count, [&](index_t r, int) {
    T* weights = weights_.data() + r * stride_;
    T* sums = heavy_.data() + r * (channels + 1);
    std::fill_n(sums, channels + 1, T(0));
    for (const index_t key : heavy) {
      if (key > rows_[at(r)]) break;
      const T weight = std::exchange(weights[key], T(0)), *value = head_.value.rows.row(key);
      for (index_t c = 0; c < channels; ++c) sums[c] += weight * value[c];
      sums[channels] += weight;
    }
  });
  parallel_for(exec, key_blocks(), [&](index_t block, int) {
    const index_t first = block * kKeyBlock, keys = std::min(kKeyBlock, head_.n - first);
    const index_t r = std::lower_bound(rows_.begin(), rows_.end(), first) - rows_.begin();
    if (r == count) return;
    const T* weights = weights_.data() + r * stride_ + first;
    T* sums = block_sums(r, block);
    blas::multiply<T>(count - r, channels, keys, T(1), {weights, stride_},
                      {head_.value.rows.row(first), head_.value.rows.stride}, T(0),
                      {sums, key_blocks() * (channels + 1)});
    for (index_t i = r; i < count; ++i, weights += stride_)
      block_sums(i, block)[channels] = std::accumulate(weights, weights + keys, T(0));
  });
  for (index_t r = 0; r < count; ++r) {
    T *out = out_.data() + r * channels, *sums = heavy_.data() + r * (channels + 1);
    std::copy_n(sums, channels, out);
    for (index_t block = 0; block <= rows_[at(r)] / kKeyBlock; ++block)
      for (index_t c = 0; c < channels; ++c) out[c] += block_sums(r, block)[c];
    for (index_t c = 0; c < channels; ++c)
      out[c] = static_cast<T>(static_cast<double>(out[c]) / sums_[at(r)]);
  }
  unit_ = kernels<T>().max_magnitude(out_.data(), count * channels);
  if (!(unit_ > 0)) unit_ = 1;
  for (index_t i = 0; i < count * channels; ++i) {
    const double part = static_cast<double>(out_[i] / unit_);
    norm_ += part * part;
  }
}

template <class T>
void DenseRows<T>::set_model(const Calibration<T>& calibration, const HeadCalibration<T>& found,
                             index_t flat) {
  far_.emplace(calibration, found, flat, head_.value.rows, head_.channels);
}

/// Attention of row r, not yet divided by the sum of its weights, which is returned: the weights of
/// heavy keys are no longer among the others.
template <class T>
double DenseRows<T>::approximate(const Calibration<T>& calibration, const HeadCalibration<T>& found,
                                 index_t r, T* out) const {
  const index_t row = rows_[at(r)], block = row / kKeyBlock, channels = head_.channels;
  const T* exact = weights_.data() + r * stride_;
  const KeySelection selection = select_keys(calibration, found, block);
  double sum = 0;
  const auto add = [&](T weight, const T* value) {
    sum += static_cast<double>(weight);
    for (index_t c = 0; c < channels; ++c) out[c] += weight * value[c];
  };
  const auto add_sums = [&](const T* sums) {
    sum += static_cast<double>(sums[channels]);
    for (index_t c = 0; c < channels; ++c) out[c] += sums[c];
  };
  std::fill_n(out, channels, T(0));
  add_sums(heavy_.data() + r * (channels + 1));
  for (const KeyRange& range : selection.exact)
    for (index_t b = range.first / kKeyBlock; b * kKeyBlock < range.last; ++b)
      add_sums(block_sums(r, b));
  const auto& heavy = found.heavy;
  std::vector<index_t> single;  // falling
  for (const index_t lag : found.lags)
    if (lag <= row && selection.is_far(row - lag) &&
        !std::binary_search(heavy.begin(), heavy.end(), row - lag))
      single.push_back(row - lag);

  T alpha = 0;
  if (found.has_far) {
    const FarDraw<T> draw = far_->draw(selection, block);
    index_t count = 0;
    for (std::size_t s = 0; s < draw.keys.size(); ++s) {
      if (std::binary_search(single.rbegin(), single.rend(), draw.keys[s])) continue;
      alpha += exact[draw.keys[s]] * draw.reciprocals[s];
      ++count;
    }
    alpha /= static_cast<T>(std::max<index_t>(count, 1));
    Buffer<T> far(channels + 1);
    far_->add_up(selection, block, far.data());
    for (index_t c = 0; c < channels; ++c) out[c] = out[c] + alpha * far[c];
    sum += static_cast<double>(alpha) * static_cast<double>(far[channels]);
  }
  for (const index_t key : single)
    add(exact[key] - alpha * far_->weight(block, key), head_.value.rows.row(key));
  return sum;
}

template <class T>
std::vector<double> DenseRows<T>::errors(const Calibration<T>& calibration,
                                         const HeadCalibration<T>& found, const Exec& exec) const {
  const auto count = static_cast<index_t>(rows_.size()), channels = head_.channels;
  std::vector<double> errors(rows_.size(), 0.0);
  parallel_for(exec, count, [&](index_t r, int) {
    Buffer<T> out(channels);
    const double sum = approximate(calibration, found, r, out.data());
    const T* exact = out_.data() + r * channels;
    for (index_t c = 0; c < channels; ++c) {
      const double got = sum > 0 ? static_cast<double>(out[c]) / sum : 0;  // 0: exp underflows
      const double miss = (got - static_cast<double>(exact[c])) / static_cast<double>(unit_);
      errors[at(r)] += miss * miss;
    }
  });
  for (double& error : errors) {
    if (error > 0) error /= norm_;
    if (!(error >= 0)) error = INFINITY;  // of what is not finite: errors are to be sorted
  }
  return errors;
}

template struct HeadArrays<float>;
template struct HeadArrays<double>;
template class DenseRows<float>;
template class DenseRows<double>;

}  // namespace convbasis
