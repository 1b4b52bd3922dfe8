#pragma once

#include "core/shape.h"
#include "cuda/numeric.h"
#include "cuda/row_tiles.h"

namespace convbasis::cuda {

/// Weights of kTile query rows of one head, kTile keys at a time: logits become weights in shared
/// memory, relative to the largest logit so far. Each row has kParts threads for its maxima and
/// sums.
template <class T>
struct OnlineSoftmax {
  static constexpr int kParts = kTileThreads / kTile, kKeys = kTile / kParts;
  static constexpr int kElements = kTile * kTileStride + kTile + kTileThreads;

  struct Row {
    T top;
    double sum;
  };
  using Rows = PerThread<Row, kTileThreads>;
  struct Shared {
    CONVBASIS_DEVICE explicit Shared(T* memory)
        : weights(memory),
          shrink(memory + kTile * kTileStride),
          tops(memory + kTile * kTileStride + kTile) {}
    /// Of thread t's keys and row; other keys are kTileStride apart.
    [[nodiscard]] CONVBASIS_DEVICE T* mine(int t) const {
      return weights + t / kTile * kKeys * kTileStride + t % kTile;
    }
    T* weights;  // (keys, kTileStride)
    T* shrink;   // what a row's sums are to be multiplied by
    T* tops;     // the largest logit that a thread has seen
  };

  Array<T> query, key;
  T scale;
  bool is_causal;

  /// Keys from this one on are not seen by kTile rows from `row` on.
  [[nodiscard]] CONVBASIS_DEVICE index_t end_of(index_t row) const {
    return is_causal && row + kTile < key.rows ? row + kTile : key.rows;
  }

  static CONVBASIS_DEVICE void clear(Row& row) { row = {-static_cast<T>(INFINITY), 0.0}; }

  /// The weights of kTile keys from `first` on. A row sees a key of the first tile, so that its
  /// largest logit is a number from then on; a logit that overflowed, or is NaN, makes the row's
  /// sum NaN.
  CONVBASIS_DEVICE void form_weights(Block<kTileThreads>& block, index_t head, index_t row,
                                     index_t first, T* operands, const Shared& shared,
                                     Rows& rows) const {
    form_logits(block, head, row, first, operands, shared);
    block.each(kTileThreads, [&](int t) {
      const T* logits = shared.mine(t);
      T top = rows[t].top;
      for (int k = 0; k < kKeys; ++k) top = larger_of(top, logits[k * kTileStride]);
      shared.tops[t] = top;
    });
    block.each(kTileThreads, [&](int t) {
      T* weights = shared.mine(t);
      const T top = larger_of(shared.tops[t % kTile], shared.tops[t % kTile + kTile]);
      const T shrink = exponential(rows[t].top - top);  // exp(-inf) = 0 at the first tile
      T sum = 0;
      for (int k = 0; k < kKeys; ++k) {
        const T weight = exponential(weights[k * kTileStride] - top);
        weights[k * kTileStride] = weight;
        sum += weight;
      }
      rows[t] = {top, rows[t].sum * static_cast<double>(shrink) + static_cast<double>(sum)};
      if (t < kTile) shared.shrink[t] = shrink;
    });
  }

 private:
  /// weights(j, i) = the logit of row `row` + i and key `first` + j, -inf where it is not seen.
  CONVBASIS_DEVICE void form_logits(Block<kTileThreads>& block, index_t head, index_t row,
                                    index_t first, T* operands, const Shared& shared) const {
    PerThread<TileSums<T>, kTileThreads> dots;
    multiply_rows(block, head, query, row, key, first, operands, dots);
    block.each(kTileThreads, [&](int t) {
      update_weights(t, shared.weights, dots[t], [&](T, T dot, int i, int j) {
        const bool seen = first + j < key.rows && (!is_causal || first + j <= row + i);
        return seen ? scale * dot : -static_cast<T>(INFINITY);
      });
    });
  }
};

inline void require_no_mask(const char* function, const AttentionOptions& options) {
  require(std::holds_alternative<std::monostate>(options.mask), function,
          "mask is given; expected none: on a GPU, is_causal alone hides keys");
}

/// As an attention call has it. Throws InvalidArgument when it has a mask.
template <class E>
[[nodiscard]] OnlineSoftmax<Compute<E>> softmax_of(const char* function,
                                                   const View<const E, 4>& query,
                                                   const View<const E, 4>& key,
                                                   const AttentionOptions& options) {
  require_no_mask(function, options);
  return {array_of(query, query.shape[1]), array_of(key, query.shape[1]),
          static_cast<Compute<E>>(scale_of(options, query.shape[3])), options.is_causal};
}

}  // namespace convbasis::cuda
