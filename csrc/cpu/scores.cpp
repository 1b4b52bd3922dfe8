#include <algorithm>

#include "cpu/blas.h"
#include "cpu/tiles.h"

namespace convbasis {

template <class T>
void DotScores<T>::select(std::span<const index_t> rows) {
  count_ = static_cast<index_t>(rows.size());
  if (packed_.size() < count_ * head_dim_) packed_ = Buffer<T>(kQueryTile * head_dim_);
  const T scale = static_cast<T>(scale_);
  for (index_t r = 0; r < count_; ++r) {
    const index_t row = rows[static_cast<std::size_t>(r)];
    T* to = packed_.data() + r * head_dim_;
    const T* from = query_.data + row * query_.strides[0];
    const index_t stride = query_.strides[1];
    for (index_t c = 0; c < head_dim_; ++c) to[c] = scale * from[c * stride];
  }
}

template <class T>
void DotScores<T>::fill(index_t first, index_t last, T* scores, index_t stride) {
  blas::multiply_transposed<T>(count_, last - first, head_dim_, T(1), {packed_.data(), head_dim_},
                               {key_.row(first), key_.stride}, {scores, stride});
}

namespace {

/// scores[j - first] = entry (row, j) for columns j in [first, last), j <= row.
template <class T>
void fill_row(const StripMatrix<T>& matrix, index_t row, index_t first, index_t last, T* scores,
              index_t step) {
  const StripLayout& layout = matrix.layout;
  const index_t covered = layout.count() > 0 ? layout.begin(0) : layout.columns;
  for (index_t j = first; j < std::min(last, covered); ++j) scores[(j - first) * step] = T(0);
  const auto after = std::upper_bound(layout.starts.begin(), layout.starts.end(), first);
  index_t r = std::max<index_t>(after - layout.starts.begin() - 1, 0);  // the strip of `first`
  for (; r < layout.count() && layout.begin(r) < last; ++r) {
    const T* kernel = matrix.kernels.row(r);
    const index_t begin = std::max(first, layout.begin(r)), end = std::min(last, layout.end(r));
    for (index_t j = begin; j < end; ++j) scores[(j - first) * step] = kernel[row - j];
  }
}

}  // namespace

template <class T>
void StripScores<T>::fill(index_t first, index_t last, T* scores, index_t stride) {
  const index_t n = lower_.layout.rows;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    const index_t row = rows_[r];
    T* out = scores + static_cast<index_t>(r) * stride;
    fill_row(lower_, row, first, std::min(last, row + 1), out, 1);
    const index_t above = std::max(first, row + 1);
    if (upper_ == nullptr || above >= last) continue;
    // Keys [above, last) are columns [n - last, n - above) of the reversed matrix, backwards.
    fill_row(*upper_, n - 1 - row, n - last, n - above, out + (last - 1 - first), -1);
  }
}

template class DotScores<float>;
template class DotScores<double>;
template class StripScores<float>;
template class StripScores<double>;

}  // namespace convbasis
