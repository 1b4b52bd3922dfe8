#pragma once

#include "convbasis/types.h"

namespace convbasis {

/// Query rows that these kernels take at once.
constexpr index_t kRowBlock = 32;
/// Features in a block of a state, whatever the instruction set. Value m of feature f of a state
/// with M values stands at (f / kFeatureBlock * M + m) * kFeatureBlock + f % kFeatureBlock.
constexpr index_t kFeatureBlock = 16;

/// Monomials first .. first + count - 1 are `variable` times monomials parent, parent + 1, ...
struct MonomialRun {
  index_t variable, parent, first, count;
};

/// Of kRowBlock rows: feature t of row i is features[t * kRowBlock + i], times factor[i] unless
/// that is null. It belongs to feature `first` + t of the state.
template <class T>
struct StateProduct {
  const T* features;
  const T* factor;
  index_t count;
  const T* state;
  index_t first;
  T* out;  ///< values x kRowBlock
};

/// A polynomial of q . k for kRowBlock queries and a few keys.
template <class T>
struct PolynomialTile {
  const T* query;  ///< channel c of row i at query[c * kRowBlock + i]
  const T* key;    ///< key t at key + t * stride
  index_t stride, count, head_dim;
  const T* coefficients;  ///< constant first
  index_t degree;
  const T* start;  ///< row i sees the keys start[i] <= t < stop[i]; kRowBlock of each
  const T* stop;
  T* out;  ///< count x kRowBlock; 0 where a row does not see the key
};

/// The hot loops of low-rank attention. `values` is one that even_values gives.
template <class T>
struct LowRankKernels {
  /// Monomials of kRowBlock rows, channel c of row i at x[c * kRowBlock + i]; out likewise.
  void (*monomials_across)(const T* x, const MonomialRun* runs, index_t run_count, T* out);
  /// Monomials of rows x + i * variables, at out + i * stride, which is aligned. Numbers after the
  /// last one, to the next multiple of kFeatureBlock, are overwritten; the kFeatureBlock numbers
  /// before the first row are read, but not used.
  void (*monomials_along)(const T* x, index_t variables, index_t rows, const MonomialRun* runs,
                          index_t run_count, T* out, index_t stride);
  /// out += features times state.
  void (*add_state_product)(const StateProduct<T>& product, index_t values);
  /// state += sum over rows of features (rows x count) times values (rows x `values`); count is a
  /// multiple of kFeatureBlock.
  void (*add_outer_products)(const T* features, index_t feature_stride, const T* with,
                             index_t value_stride, index_t rows, index_t count, T* state,
                             index_t values);
  void (*polynomial_tile)(const PolynomialTile<T>& tile);
};

/// Value columns are taken in groups of one of these sizes: accumulators for all columns of a group
/// stay in registers.
constexpr index_t kGroupSizes[] = {3, 5, 7, 9};

}  // namespace convbasis
