#include <algorithm>

#include "cpu/blas.h"
#include "cpu/rows.h"
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
    pack_rows(query_, row, row + 1, head_dim_, to);
    kernels<T>().scale(to, scale, head_dim_);
  }
}

template <class T>
void DotScores<T>::fill(index_t first, index_t last, T* scores, index_t stride) {
  if (panels_ != nullptr) {
    panels_->multiply({packed_.data(), head_dim_}, count_, first, last, scores, stride);
    return;
  }
  blas::multiply_transposed<T>(count_, last - first, head_dim_, T(1), {packed_.data(), head_dim_},
                               {key_.row(first), key_.stride}, {scores, stride});
}

namespace {

/// Calls piece(begin, end, kernel) for the runs of columns in [first, last), j <= row, that one
/// strip covers; kernel is null where none does, otherwise entry (row, j) is kernel[row - j].
template <class T, class Piece>
void for_each_piece(const StripMatrix<T>& matrix, index_t first, index_t last, const Piece& piece) {
  if (first >= last) return;
  const StripLayout& layout = matrix.layout;
  const index_t covered = layout.count() > 0 ? layout.begin(0) : layout.columns;
  if (first < covered) piece(first, std::min(last, covered), static_cast<const T*>(nullptr));
  const auto after = std::upper_bound(layout.starts.begin(), layout.starts.end(), first);
  index_t r = std::max<index_t>(after - layout.starts.begin() - 1, 0);  // the strip of `first`
  for (; r < layout.count() && layout.begin(r) < last; ++r)
    piece(std::max(first, layout.begin(r)), std::min(last, layout.end(r)), matrix.kernels.row(r));
}

}  // namespace

template <class T>
void StripScores<T>::fill(index_t first, index_t last, T* scores, index_t stride) {
  const index_t n = lower_.layout.rows;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    const index_t row = rows_[r];
    T* out = scores + static_cast<index_t>(r) * stride;
    const index_t below = std::min(last, row + 1), above = std::max(first, row + 1);
    for_each_piece(lower_, first, below, [&](index_t begin, index_t end, const T* kernel) {
      T* to = out + begin - first;
      if (kernel == nullptr) {
        std::fill_n(to, end - begin, T(0));
      } else {
        kernels<T>().copy_reversed(kernel + row - end + 1, to, end - begin);
      }
    });
    if (upper_ == nullptr || above >= last) continue;
    // Key j is column n - 1 - j of the reversed matrix, and this row its row n - 1 - row.
    for_each_piece(*upper_, n - last, n - above, [&](index_t begin, index_t end, const T* kernel) {
      T* to = out + n - end - first;
      if (kernel == nullptr) {
        std::fill_n(to, end - begin, T(0));
      } else {
        std::copy_n(kernel + n - row - end, end - begin, to);
      }
    });
  }
}

template class DotScores<float>;
template class DotScores<double>;
template class StripScores<float>;
template class StripScores<double>;

}  // namespace convbasis
