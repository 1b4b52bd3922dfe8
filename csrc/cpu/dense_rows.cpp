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
  std::vector<double> norms(rows_.size(), 0.0);
  parallel_for(exec, ceil_div(count, kRowTile), [&](index_t tile, int) {
    const index_t first = tile * kRowTile, tile_rows = std::min(kRowTile, count - first);
    const index_t keys = rows_[at(first + tile_rows - 1)] + 1;
    T* out = out_.data() + first * channels;
    multiply_values(head_, tile_rows, keys, {weights_.data() + first * stride_, stride_}, out);
    for (index_t r = 0; r < tile_rows; ++r) {
      for (index_t c = 0; c < channels; ++c) {
        T& y = out[r * channels + c];
        y = static_cast<T>(static_cast<double>(y) / sums_[at(first + r)]);
        norms[at(first + r)] += static_cast<double>(y) * static_cast<double>(y);
      }
    }
  });
  for (const double norm : norms) norm_ += norm;
}

/// The weights that a calibrated basis gives to the keys of row r; returns their sum.
template <class T>
double DenseRows<T>::approximate(const Calibration<T>& calibration,
                                 const HeadCalibration<T>& calibrated, const FarKeys<T>& far,
                                 index_t r, T* weights) const {
  const index_t row = rows_[at(r)], block = row / kKeyBlock;
  const T* exact = weights_.data() + r * stride_;
  const KeySelection selection = select_keys(calibration, calibrated, block);
  std::fill_n(weights, stride_, T(0));
  double sum = 0;
  if (calibrated.has_far) {
    const FarDraw<T> draw = far.draw(selection, block);
    T drawn = 0, model = 0;
    for (std::size_t s = 0; s < draw.keys.size(); ++s)
      drawn += exact[draw.keys[s]] * draw.reciprocals[s];
    far.add_up(draw, row, 1, &model);
    const double factor = model > 0 ? static_cast<double>(drawn / model) : 0;
    for (const KeyRange& range : selection.far)
      sum += factor * far.subtract(row, -factor, range.first, range.last, weights + range.first);
  }
  const auto take = [&](index_t key) {
    weights[key] = exact[key];
    sum += static_cast<double>(exact[key]);
  };
  for (const index_t key : calibrated.heavy) take(key);
  for (const KeyRange& range : selection.exact) {
    auto heavy = std::lower_bound(calibrated.heavy.begin(), calibrated.heavy.end(), range.first);
    for (index_t j = range.first; j < std::min(range.last, row + 1); ++j) {
      if (heavy != calibrated.heavy.end() && *heavy == j) {
        ++heavy;
      } else {
        take(j);
      }
    }
  }
  return sum;
}

template <class T>
std::vector<double> DenseRows<T>::errors(const Calibration<T>& calibration,
                                         const HeadCalibration<T>& calibrated, index_t flat,
                                         const Exec& exec) const {
  const FarKeys<T> far(calibration, calibrated, flat);
  const auto count = static_cast<index_t>(rows_.size()), channels = head_.channels;
  std::vector<double> errors(rows_.size(), 0.0);
  parallel_for(exec, ceil_div(count, kRowTile), [&](index_t tile, int) {
    const index_t first = tile * kRowTile, tile_rows = std::min(kRowTile, count - first);
    Buffer<T> weights(tile_rows * stride_), out(tile_rows * channels);
    std::vector<double> sums(at(tile_rows));
    for (index_t r = 0; r < tile_rows; ++r)
      sums[at(r)] =
          approximate(calibration, calibrated, far, first + r, weights.data() + r * stride_);
    const index_t keys = rows_[at(first + tile_rows - 1)] + 1;
    multiply_values(head_, tile_rows, keys, {weights.data(), stride_}, out.data());
    for (index_t r = 0; r < tile_rows; ++r) {
      const T* exact = out_.data() + (first + r) * channels;
      for (index_t c = 0; c < channels; ++c) {
        const double y = static_cast<double>(out[r * channels + c]) / sums[at(r)];
        const double miss = y - static_cast<double>(exact[c]);
        errors[at(first + r)] += miss * miss;
      }
    }
  });
  for (double& error : errors) error = norm_ > 0 ? error / norm_ : error > 0 ? INFINITY : 0;
  return errors;
}

template struct HeadArrays<float>;
template struct HeadArrays<double>;
template class DenseRows<float>;
template class DenseRows<double>;

}  // namespace convbasis
