#pragma once

#include <span>

#include "convbasis/types.h"
#include "core/buffer.h"
#include "core/schedule.h"
#include "cpu/panels.h"
#include "cpu/simd/kernels.h"
#include "cpu/strips.h"
#include "cpu/visible.h"

namespace convbasis {

/// Logits of a few query rows against a range of keys, computed when asked.
template <class T>
class ScoreTiles {
 public:
  virtual ~ScoreTiles() = default;
  /// The query rows that the next calls of fill are about.
  virtual void select(std::span<const index_t> rows) = 0;
  /// scores[r * stride + j - first] for keys j in [first, last); entries a row does not see may
  /// hold anything.
  virtual void fill(index_t first, index_t last, T* scores, index_t stride) = 0;
};

/// scale * q . k by matrix products.
template <class T>
class DotScores final : public ScoreTiles<T> {
 public:
  DotScores(View<const T, 2> query, Rows<const T> key, index_t head_dim, double scale)
      : query_(query), key_(key), head_dim_(head_dim), scale_(scale) {}
  /// The same from packed keys, which pays where all rows of a head are asked for.
  DotScores(View<const T, 2> query, const Panels<T>& key, index_t head_dim, double scale)
      : query_(query), panels_(&key), head_dim_(head_dim), scale_(scale) {}
  void select(std::span<const index_t> rows) override;
  void fill(index_t first, index_t last, T* scores, index_t stride) override;

 private:
  View<const T, 2> query_;
  Rows<const T> key_{};
  const Panels<T>* panels_ = nullptr;
  index_t head_dim_;
  double scale_;
  index_t count_ = 0;
  Buffer<T> packed_;
};

/// Logits that strips stand for: lower on and below the diagonal, upper (reversed) above it.
template <class T>
class StripScores final : public ScoreTiles<T> {
 public:
  StripScores(const StripMatrix<T>& lower, const StripMatrix<T>* upper)
      : lower_(lower), upper_(upper) {}
  void select(std::span<const index_t> rows) override { rows_ = rows; }
  void fill(index_t first, index_t last, T* scores, index_t stride) override;

 private:
  const StripMatrix<T>& lower_;
  const StripMatrix<T>* upper_;
  std::span<const index_t> rows_;
};

/// Keys that a query row sees: [0, row + 1) when causal, at most `keys`.
[[nodiscard]] inline index_t visible_keys(index_t row, index_t keys, bool is_causal) {
  return is_causal && row + 1 < keys ? row + 1 : keys;
}

constexpr index_t kQueryTile = 128, kKeyTile = 256;

/// Softmax over the visible keys of at most kQueryTile rows, then the weighted mean of value rows,
/// tile by tile with an online softmax. out holds rows.size() x channels, lse may be null. Only
/// keys that `sight` tells of count: 0 and -inf for a row that sees none of them.
template <class T>
class OnlineSoftmax {
 public:
  /// `function` is named when a logit overflows; a tile has `keys` of them, at most kKeyTile.
  explicit OnlineSoftmax(index_t channels, const char* function = "exact_attention",
                         index_t keys = kKeyTile);
  void attend(ScoreTiles<T>& source, Rows<const T> value, const TileSight& sight,
              std::span<const index_t> rows, Rows<T> out, double* lse);

 private:
  void absorb(index_t row, const RowSight& sight, KeyRange keys, T* out);

  const char* function_;
  index_t channels_, key_tile_;
  Buffer<T> scores_, row_max_;
  Buffer<double> row_sum_;
};

}  // namespace convbasis
