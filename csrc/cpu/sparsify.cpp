#include "convbasis/sparsify.h"

#include <cmath>
#include <random>

#include "core/shape.h"
#include "cpu/barriers.h"
#include "cpu/leverage.h"
#include "cpu/sketch.h"
#include "cpu/whitening.h"

namespace convbasis {
namespace {

constexpr const char* kName = "sparsify_features";

using Method = SparsifyOptions::Method;
using Kind = SparsifyOptions::Scores;

std::string shape_of(const Columns& x) {
  return to_string(std::array<index_t, 2>{rows_of(x), count_of(x)});
}

void require_probability(const char* name, double value) {
  require(value > 0 && value < 1, kName,
          std::string(name) + " is out of range; expected between 0 and 1; got " +
              std::to_string(value));
}

void require_arguments(const Columns& x, const SparsifyOptions& options) {
  require(rows_of(x) >= 1, kName,
          "x is no matrix; expected shape (n, d), n >= 1; got shape " + shape_of(x));
  require(count_of(x) >= rows_of(x), kName,
          "x has fewer columns than rows, and nothing to leave out; expected shape (n, d) with d "
          ">= n = " +
              std::to_string(rows_of(x)) + "; got shape " + shape_of(x));
  require_columns(kName, x);
  require_probability("epsilon", options.epsilon);
  require_probability("delta", options.delta);
}

SparsifyOptions::Uniforms uniforms_of(const SparsifyOptions& options) {
  if (options.uniforms) return options.uniforms;
  return [generator = std::mt19937_64(options.seed)](std::span<double> numbers) mutable {
    for (double& number : numbers) number = static_cast<double>(generator() >> 11) * 0x1p-53;
  };
}

/// How many columns are asked for; checked against the rank.
index_t columns_asked(const Columns& x, index_t rank, double delta,
                      const SparsifyOptions& options) {
  const bool is_bss = options.method == Method::bss;
  if (!options.num_columns)
    return is_bss ? barrier_columns(rank, options.epsilon)
                  : leverage_columns(rank, options.epsilon, delta);
  const index_t wanted = *options.num_columns, least = std::max<index_t>(rank + is_bss, 1);
  require(wanted >= 1 && (wanted >= least || wanted >= count_of(x)), kName,
          "num_columns is too small for x of rank " + std::to_string(rank) +
              "; expected at least " + std::to_string(least) + "; got " + std::to_string(wanted));
  return wanted;
}

/// Whether a sketch is taken, and the number of columns asked for, which depends on it a little.
void plan(const Columns& x, const SparsifyOptions& options, Sparsified& result) {
  const auto asked = [&](bool is_sketched) {
    const double share = is_sketched ? 1 - kSketchShare : 1.0;
    return columns_asked(x, result.rank, options.delta * share, options);
  };
  result.is_sketched = options.method == Method::leverage && result.rank > 0 &&
                       (options.scores == Kind::sketched ||
                        (options.scores == Kind::automatic &&
                         cost_of_sketch(x, asked(true), options.delta) < cost_of_forms(x)));
  result.num_columns = asked(result.is_sketched);
  if (result.num_columns >= count_of(x)) result.is_sketched = false;
}

/// Squares of the weights of all columns, and what they promise.
std::vector<double> chosen(const Columns& x, const Dense& white, const SparsifyOptions& options,
                           Sparsified& result, const Exec& exec) {
  const index_t m = result.num_columns;
  if (options.method == Method::bss) {
    result.epsilon_promised = barrier_epsilon(result.rank, m);
    return barrier_sample(x, white, m, options.progress, exec);
  }
  const double for_sketch = result.is_sketched ? options.delta * kSketchShare : 0.0;
  result.epsilon_promised = leverage_epsilon(result.rank, m, options.delta - for_sketch);
  const auto uniforms = uniforms_of(options);
  if (result.is_sketched) return sketched_sample(x, white, m, for_sketch, uniforms, exec);
  const Dense form = product(transposed(white), white, exec);
  std::vector<double> scores = quadratic_forms(x, form, exec);
  for (double& score : scores) score = std::max(score, 0.0);
  return leverage_sample(scores, m, uniforms);
}

}  // namespace

Sparsified sparsify_features(const Columns& x, const SparsifyOptions& options, const Exec& exec) {
  require_arguments(x, options);
  const ScaledColumns scaled = scaled_columns(kName, x, exec);
  const Columns& columns = scaled.columns;
  const Dense gram = gram_of(columns, exec), white = whitening(gram);
  Sparsified result;
  result.rank = white.rows();
  plan(columns, options, result);
  if (result.rank == 0) {
    result.indices = {0};  // one column of zeros, so that the features have one
    result.weights = {1.0};
  } else if (result.num_columns >= count_of(columns)) {
    result.indices = nonzero_columns(columns);
    result.weights.assign(result.indices.size(), 1.0);
  } else {
    const std::vector<double> squares = chosen(columns, white, options, result, exec);
    for (std::size_t j = 0; j < squares.size(); ++j)
      if (squares[j] > 0) {
        result.indices.push_back(static_cast<index_t>(j));
        result.weights.push_back(std::sqrt(squares[j]));
      }
  }
  if (options.progress && options.method == Method::leverage)
    options.progress(result.num_columns, result.num_columns);
  Dense features(rows_of(columns), static_cast<index_t>(result.indices.size()));
  reweighted_columns(columns, result.indices, result.weights, features.view(), exec);
  measure(features, white, gram, scaled.factor, result, exec);
  return result;
}

}  // namespace convbasis
