#include "cpu/backward_tiles.h"

#include <algorithm>
#include <cmath>

#include "cpu/blas.h"

namespace convbasis {
namespace {

/// weights = exp(weights - lse). Rounding an lse of some hundred would change all weights of a row
/// alike, so what it changes is taken back.
template <class T>
void exp_of_row(T* weights, double lse, index_t count) {
  const T shift = static_cast<T>(lse);
  kernels<T>().exp_shifted(weights, shift, weights, count);
  const T factor = static_cast<T>(std::exp(static_cast<double>(shift) - lse));
  if (factor != T(1)) kernels<T>().scale(weights, factor, count);
}

}  // namespace

template <class T>
BackwardTiles<T>::BackwardTiles(Rows<const T> value, const Panels<T>& value_panels,
                                index_t channels, const VisibleKeys& visible, const char* function)
    : value_(value),
      value_panels_(value_panels),
      channels_(channels),
      visible_(visible),
      softmax_(channels, function, kPanel),
      weights_(kQueryTile * kPanel),
      grad_scores_(kQueryTile * kPanel),
      output_(kQueryTile * channels) {}

template <class T>
void BackwardTiles<T>::forward(ScoreTiles<T>& source, const BackwardRows<T>& rows) {
  visible_.look(rows.rows, sight_);
  softmax_.attend(source, value_, sight_, rows.rows, {output_.data(), channels_}, rows.lse);
  for (index_t r = 0; r < static_cast<index_t>(rows.rows.size()); ++r) {
    const T *output = output_.data() + r * channels_, *grad = rows.grad_output.row(r);
    double delta = 0;
    for (index_t c = 0; c < channels_; ++c)
      delta += static_cast<double>(grad[c]) * static_cast<double>(output[c]);
    rows.delta[r] = static_cast<T>(delta);
  }
}

template <class T>
const TileSight& BackwardTiles<T>::look(const BackwardRows<T>& rows, KeyRange keys) {
  visible_.look(rows.rows, keys, sight_);
  return sight_;
}

template <class T>
Rows<const T> BackwardTiles<T>::backward(ScoreTiles<T>& source, index_t first, index_t last,
                                         const BackwardRows<T>& rows, Rows<T> grad_value) {
  const Kernels<T>& simd = kernels<T>();
  const index_t count = static_cast<index_t>(rows.rows.size()), width = last - first;
  source.select(rows.rows);
  source.fill(first, last, weights_.data(), kPanel);
  value_panels_.multiply(rows.grad_output, count, first, last, grad_scores_.data(), kPanel);
  for (index_t r = 0; r < count; ++r) {
    T *weights = weights_.data() + r * kPanel, *grads = grad_scores_.data() + r * kPanel;
    const RowSight& sight = sight_.row(r);
    const KeyRange seen = sight.within(first, last);
    const index_t begin = seen.first - first, end = seen.last - first;
    const index_t shown = sight.count_seen(seen);
    if (shown > 0) {
      exp_of_row(weights + begin, rows.lse[r], end - begin);
      const T delta = rows.delta[r];
      for (index_t j = begin; j < end; ++j) grads[j] = weights[j] * (grads[j] - delta);
    }
    for (T* numbers : {weights, grads}) {
      std::fill(numbers, numbers + begin, T(0));
      // What came of the logits of hidden keys may be infinite.
      if (shown < end - begin)
        simd.hide(numbers + begin, sight.bits, seen.first - sight.base, T(0), end - begin);
      std::fill(numbers + end, numbers + width, T(0));
    }
  }
  blas::add_transposed_product<T>(width, channels_, count, {weights_.data(), kPanel},
                                  {rows.grad_output.data, rows.grad_output.stride},
                                  {grad_value.row(first), grad_value.stride});
  return {grad_scores_.data(), kPanel};
}

template class BackwardTiles<float>;
template class BackwardTiles<double>;

}  // namespace convbasis
