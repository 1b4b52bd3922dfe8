#pragma once

#include <span>

#include "cpu/panels.h"
#include "cpu/tiles.h"
#include "cpu/visible.h"

namespace convbasis {

/// At most kQueryTile query rows of a head in the backward pass, panel_rows() for the best speed;
/// entry r is about row rows[r].
template <class T>
struct BackwardRows {
  std::span<const index_t> rows;
  Rows<const T> grad_output;
  double* lse;  ///< log of the row's sum of weights
  T* delta;     ///< grad_output . output
};

/// Tiles of the softmax f and of the gradient by the logits, dS = f o (dY V^T - delta), for logits
/// of any source. Whoever calls turns dS into gradients by what the logits were made of.
template <class T>
class BackwardTiles {
 public:
  /// `function` is named when a logit overflows.
  BackwardTiles(Rows<const T> value, const Panels<T>& value_panels, index_t channels,
                const VisibleKeys& visible, const char* function);

  /// Runs the forward pass over all keys for the lse and delta of the rows.
  void forward(ScoreTiles<T>& source, const BackwardRows<T>& rows);

  /// What the rows see of some keys: what the next calls of backward go by.
  const TileSight& look(const BackwardRows<T>& rows, KeyRange keys);

  /// Adds f^T dY to rows [first, last) of grad_value, and gives dS: row r of the result holds keys
  /// [first, last) of rows.rows[r], 0 where a key is not visible. It stays until the next call.
  /// last - first is at most kPanel; the keys are of those last looked at, and of one segment or
  /// none.
  Rows<const T> backward(ScoreTiles<T>& source, index_t first, index_t last,
                         const BackwardRows<T>& rows, Rows<T> grad_value);

 private:
  Rows<const T> value_;
  const Panels<T>& value_panels_;
  index_t channels_;
  const VisibleKeys& visible_;
  TileSight sight_;
  OnlineSoftmax<T> softmax_;
  Buffer<T> weights_, grad_scores_, output_;
};

}  // namespace convbasis
