#pragma once

#include "cpu/columns.h"

namespace convbasis {

/// The share of delta that sketched scores may fail with; the draws have the rest.
constexpr double kSketchShare = 1.0 / 16;

/// What sketched sampling costs, in multiply-adds of a matrix product.
[[nodiscard]] double cost_of_sketch(const Columns& x, index_t num_columns, double delta);

/// Like leverage_sample from the exact scores, without forming those of all columns: all are
/// guessed from a random projection of the whitened columns, and a guess only says where to look.
/// Columns are drawn by four times their guesses, and kept with the probability that the exact
/// score of that column asks for, so that those kept are drawn by the exact scores; unless some
/// guess is below a quarter of its score, which has probability delta at most. Source: Spielman and
/// Srivastava, Graph sparsification by effective resistances, 2011, for the projection. white (k,
/// n) whitens the columns.
[[nodiscard]] std::vector<double> sketched_sample(const Columns& x, const Dense& white,
                                                  index_t num_columns, double delta,
                                                  const SparsifyOptions::Uniforms& uniforms,
                                                  const Exec& exec);

}  // namespace convbasis
