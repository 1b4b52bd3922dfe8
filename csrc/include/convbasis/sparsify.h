#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// The columns of a sparse matrix one after another (CSC).
struct SparseColumns {
  index_t num_rows = 0;
  std::span<const index_t> starts;  ///< (d + 1); column j is [starts[j], starts[j + 1]) of the rest
  std::span<const index_t> rows;    ///< row of every entry; repeated rows add up
  std::span<const double> values;
};

/// The columns of a matrix (n, d): dense, each row contiguous, or sparse.
using Columns = std::variant<View<const double, 2>, SparseColumns>;

/// How a few columns are chosen for all (arXiv 2304.04397).
struct SparsifyOptions {
  enum class Method {
    leverage,  ///< drawn with probabilities proportional to their leverage scores
    bss        ///< one by one between two barriers: draws nothing, takes longer, comes out better
  };
  enum class Scores {
    automatic,  ///< sketched where that is expected to be cheaper
    exact,      ///< of every column: O(n^2 d), or O(sum of nnz_j^2)
    sketched    ///< by a random projection, then exactly where a draw falls: O(nnz log d)
  };
  /// Fills a span with independent numbers, uniform in [0, 1). Asked on the calling thread.
  using Uniforms = std::function<void(std::span<double>)>;
  /// Called as progress(chosen, num_columns) on the calling thread.
  using Progress = std::function<void(index_t, index_t)>;

  Method method = Method::leverage;
  Scores scores = Scores::automatic;     ///< of method leverage
  std::optional<index_t> num_columns{};  ///< at most so many; empty = what epsilon needs
  double epsilon = 0.5;                  ///< to promise, between 0 and 1
  double delta = 0.05;                   ///< probability at most that leverage breaks its promise
  Uniforms uniforms{};                   ///< empty = a generator that starts from seed
  std::uint64_t seed = 0;
  Progress progress{};  ///< after every column of bss, and once at the end of leverage
};

/// Which columns, how they are weighted, and how well Y = X[:, indices] * weights stands for X.
struct Sparsified {
  std::vector<index_t> indices;  ///< increasing
  std::vector<double> weights;
  index_t num_columns = 0;      ///< asked for; indices are fewer where one was drawn twice
  index_t rank = 0;             ///< of X, rows of norm 1, singular values above 1e-6 of the largest
  bool is_sketched = false;     ///< whether leverage scores were
  double epsilon_promised = 0;  ///< before anything is drawn
  double epsilon = 0;           ///< (1 - epsilon) X X^T <= Y Y^T <= (1 + epsilon) X X^T, measured
  double condition_number = 1;  ///< of Y Y^T against X X^T
  double radius = 0;            ///< largest |X X^T|
  double logit_deviation = 0;   ///< largest |Y Y^T - X X^T|
  double error_bound = 0;       ///< exp(2 max(epsilon radius, logit_deviation)) - 1
  double error = 0;             ///< largest relative change of an entry of the softmax of X X^T
  double trivial_error = 0;     ///< the same for Y = 0
};

/// A few reweighted columns Y of X (n, d), d >= n >= 1, with nearly the same logits X X^T.
///
/// For rank k, leverage promises epsilon with probability 1 - delta from k log(2 k / delta) / h
/// columns, h = (1 + epsilon) log(1 + epsilon) - epsilon; bss promises it from c k columns,
/// epsilon = 2 sqrt(c) / (c + 1). From d columns on, all that are not zero are taken as they are.
/// Cost O(n^2 d), of sparse columns O(sum of nnz_j^2), and O(k^3) a column of bss. Throws
/// InvalidArgument when an argument breaks a rule, NaN and infinity included, and BackendError if
/// LAPACK's iteration does not converge or rounding closes the gap between the barriers.
[[nodiscard]] Sparsified sparsify_features(const Columns& x, const SparsifyOptions& options = {},
                                           const Exec& exec = {});

/// X[:, indices] * weights, the features themselves. out (n, indices), contiguous rows.
void reweighted_columns(const Columns& x, std::span<const index_t> indices,
                        std::span<const double> weights, View<double, 2> out,
                        const Exec& exec = {});

}  // namespace convbasis
