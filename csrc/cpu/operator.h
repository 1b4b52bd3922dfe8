#pragma once

#include <algorithm>
#include <memory>

#include "cpu/simd/kernels.h"

namespace convbasis {

/// y = B x for a matrix B that is prepared for many products. x and y have contiguous channels, as
/// many as the operator takes. One call at a time.
template <class T>
class PreparedProduct {
 public:
  virtual ~PreparedProduct() = default;
  virtual void multiply(Rows<const T> x, Rows<T> y, index_t channels) = 0;
};

/// The softmax matrix f of one head (rows sum to 1, or are 0) as a gradient through attention needs
/// it: by products alone. Strips, and any other fast form, implement it.
///
/// Entries that are cheap one by one may be declared near: these are multiplied as dense tiles, and
/// products are taken with the rest only.
template <class T>
class AttentionOperator {
 public:
  virtual ~AttentionOperator() = default;
  [[nodiscard]] virtual index_t rows() const = 0;
  [[nodiscard]] virtual index_t columns() const = 0;
  /// Channels of x and y are a multiple of this: a vector's lanes, or less.
  [[nodiscard]] virtual index_t channel_multiple() const { return kernels<T>().lanes; }
  /// y = f x, or f^T x. x and y have contiguous channels.
  virtual void multiply(bool transpose, Rows<const T> x, Rows<T> y, index_t channels) const = 0;

  /// Columns [begin, end).
  struct Columns {
    index_t begin = 0, end = 0;
  };
  /// Where the near entries of a row are. Neither bound decreases from row to row.
  [[nodiscard]] virtual Columns near_columns(index_t) const { return {}; }
  /// out[j - first] = f(row, j) for columns [first, last), 0 where that is not near. Called by
  /// many threads at once.
  virtual void near_entries(index_t, index_t first, index_t last, T* out) const {
    std::fill_n(out, last - first, T(0));
  }
  /// False when all entries are near.
  [[nodiscard]] virtual bool has_far() const { return true; }
  /// f, or f^T, without the near entries. The operator has to outlive it.
  [[nodiscard]] virtual std::unique_ptr<PreparedProduct<T>> far(bool transpose) const {
    return std::make_unique<Whole>(*this, transpose);
  }

 private:
  class Whole final : public PreparedProduct<T> {
   public:
    Whole(const AttentionOperator& f, bool transpose) : f_(f), transpose_(transpose) {}
    void multiply(Rows<const T> x, Rows<T> y, index_t channels) override {
      f_.multiply(transpose_, x, y, channels);
    }

   private:
    const AttentionOperator& f_;
    bool transpose_;
  };
};

}  // namespace convbasis
