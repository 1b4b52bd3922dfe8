#include "cpu/dense_rows.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/shape.h"
#include "cpu/blas.h"
#include "cpu/tiles.h"

namespace convbasis {
namespace {

constexpr index_t kRowTile = 32;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Sums of values; in parts that BLAS multiplies without packing them.
template <class T>
void multiply_values(const HeadArrays<T>& head, index_t rows, index_t keys,
                     blas::Matrix<const T> weights, T* out) {
  for (index_t first = 0; first < keys; first += kKeyTile)
    blas::multiply<T>(rows, head.channels, std::min(kKeyTile, keys - first), T(1),
                      {weights.data + first, weights.stride},
                      {head.value.rows.row(first), head.value.rows.stride},
                      first == 0 ? T(0) : T(1), {out, head.channels});
}

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
void DenseRows<T>::attend(const Exec& exec) {
  const auto count = static_cast<index_t>(rows_.size()), channels = head_.channels;
  out_ = Buffer<T>(count * channels);
  parallel_for(exec, ceil_div(count, kRowTile), [&](index_t tile, int) {
    const index_t first = tile * kRowTile, tile_rows = std::min(kRowTile, count - first);
    const index_t keys = rows_[at(first + tile_rows - 1)] + 1;
    T* out = out_.data() + first * channels;
    multiply_values(head_, tile_rows, keys, {weights_.data() + first * stride_, stride_}, out);
    for (index_t r = 0; r < tile_rows; ++r) {
      for (index_t c = 0; c < channels; ++c) {
        T& y = out[r * channels + c];
        y = static_cast<T>(static_cast<double>(y) / sums_[at(first + r)]);
      }
    }
  });
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

/// Attention of row r, not yet divided by the sum of its weights, which is returned.
template <class T>
double DenseRows<T>::approximate(const Calibration<T>& calibration, const HeadCalibration<T>& found,
                                 index_t r, T* out) const {
  const index_t row = rows_[at(r)], block = row / kKeyBlock, channels = head_.channels;
  const T* exact = weights_.data() + r * stride_;
  const KeySelection selection = select_keys(calibration, found, block);
  double sum = 0;
  std::fill_n(out, channels, T(0));
  const auto add = [&](T weight, const T* value) {
    sum += static_cast<double>(weight);
    for (index_t c = 0; c < channels; ++c) out[c] += weight * value[c];
  };
  const auto& heavy = found.heavy;
  for (const index_t key : heavy)
    if (key <= row) add(exact[key], head_.value.rows.row(key));
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

  Buffer<T> weights(row + 1);
  for (const KeyRange& range : selection.exact) {
    const index_t first = range.first, count = std::min(range.last, row + 1) - first;
    std::copy_n(exact + first, count, weights.data());
    auto key = std::lower_bound(heavy.begin(), heavy.end(), first);
    for (; key != heavy.end() && *key < first + count; ++key) weights[*key - first] = 0;
    for (index_t j = 0; j < count; ++j) sum += static_cast<double>(weights[j]);
    blas::multiply<T>(1, channels, count, T(1), {weights.data(), count},
                      {head_.value.rows.row(first), head_.value.rows.stride}, T(1),
                      {out, channels});
  }
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
