#include "cpu/backward_tiles.h"

#include <algorithm>

#include "cpu/blas.h"

namespace convbasis {

template <class T>
BackwardTiles<T>::BackwardTiles(index_t channels, bool is_causal, const char* function)
    : channels_(channels),
      is_causal_(is_causal),
      softmax_(channels, function),
      weights_(kQueryTile * kKeyTile),
      grad_scores_(kQueryTile * kKeyTile),
      output_(kQueryTile * channels) {}

template <class T>
void BackwardTiles<T>::forward(ScoreTiles<T>& source, Rows<const T> value, index_t keys,
                               const BackwardRows<T>& rows) {
  double lse[kQueryTile];
  softmax_.attend(source, value, keys, is_causal_, rows.rows, {output_.data(), channels_}, lse);
  for (index_t r = 0; r < static_cast<index_t>(rows.rows.size()); ++r) {
    const T *output = output_.data() + r * channels_, *grad = rows.grad_output.row(r);
    double delta = 0;
    for (index_t c = 0; c < channels_; ++c)
      delta += static_cast<double>(grad[c]) * static_cast<double>(output[c]);
    rows.lse[r] = static_cast<T>(lse[r]);
    rows.delta[r] = static_cast<T>(delta);
  }
}

template <class T>
Rows<const T> BackwardTiles<T>::backward(ScoreTiles<T>& source, Rows<const T> value, index_t first,
                                         index_t last, const BackwardRows<T>& rows,
                                         Rows<T> grad_value) {
  const index_t count = static_cast<index_t>(rows.rows.size()), width = last - first;
  source.select(rows.rows);
  source.fill(first, last, weights_.data(), kKeyTile);
  blas::multiply_transposed<T>(count, width, channels_, T(1),
                               {rows.grad_output.data, rows.grad_output.stride},
                               {value.row(first), value.stride}, {grad_scores_.data(), kKeyTile});
  for (index_t r = 0; r < count; ++r) {
    T *weights = weights_.data() + r * kKeyTile, *grads = grad_scores_.data() + r * kKeyTile;
    const index_t seen = std::clamp<index_t>(
        visible_keys(rows.rows[static_cast<std::size_t>(r)], last, is_causal_) - first, 0, width);
    kernels<T>().exp_shifted(weights, rows.lse[r], weights, seen);
    const T delta = rows.delta[r];
    for (index_t j = 0; j < seen; ++j) grads[j] = weights[j] * (grads[j] - delta);
    std::fill(weights + seen, weights + width, T(0));
    std::fill(grads + seen, grads + width, T(0));
  }
  blas::add_transposed_product<T>(width, channels_, count, {weights_.data(), kKeyTile},
                                  {rows.grad_output.data, rows.grad_output.stride},
                                  {grad_value.row(first), grad_value.stride});
  return {grad_scores_.data(), kKeyTile};
}

template class BackwardTiles<float>;
template class BackwardTiles<double>;

}  // namespace convbasis
