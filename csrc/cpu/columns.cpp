#include "cpu/columns.h"

#include <cmath>
#include <limits>

#include "core/shape.h"
#include "core/thread_pool.h"

namespace convbasis {
namespace {

using DenseColumns = View<const double, 2>;

/// Largest entries outside are scaled before they are squared, so that nothing over- or underflows.
constexpr double kSafeLeast = 1e-75, kSafeMost = 1e75;

/// One product of entries by index costs about as much as this many inside a matrix product.
constexpr index_t kGather = 16;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

void require_kind(const char* function, const DenseColumns& x) {
  require(x.strides[1] == 1 || x.shape[1] <= 1, function,
          "x has rows with gaps; expected contiguous rows");
}

void require_kind(const char* function, const SparseColumns& x) {
  const auto rule = [&](bool holds, const char* message) { require(holds, function, message); };
  const auto entries = static_cast<index_t>(x.values.size());
  rule(!x.starts.empty() && x.starts.front() == 0 && x.starts.back() == entries &&
           std::is_sorted(x.starts.begin(), x.starts.end()),
       "starts does not divide the entries; expected 0 <= ... <= their number");
  rule(static_cast<index_t>(x.rows.size()) == entries,
       "rows has another length than values; expected one row for every value");
  rule(std::all_of(x.rows.begin(), x.rows.end(),
                   [&](index_t row) { return 0 <= row && row < x.num_rows; }),
       "rows has entries outside of the matrix; expected 0 <= row < num_rows");
}

/// The entries in runs of contiguous ones.
index_t runs_of(const DenseColumns& x) { return x.shape[0]; }
index_t runs_of(const SparseColumns&) { return 1; }
std::span<const double> run_of(const DenseColumns& x, index_t i) {
  return {x.data + i * x.strides[0], at(x.shape[1])};
}
std::span<const double> run_of(const SparseColumns& x, index_t) { return x.values; }

Columns with_values(const DenseColumns& x, const double* values) {
  return contiguous_view<const double, 2>(values, x.shape);
}
Columns with_values(SparseColumns x, const double* values) {
  x.values = {values, x.values.size()};
  return x;
}

}  // namespace

index_t rows_of(const Columns& x) {
  const auto* sparse = std::get_if<SparseColumns>(&x);
  return sparse != nullptr ? sparse->num_rows : std::get<DenseColumns>(x).shape[0];
}

index_t count_of(const Columns& x) {
  const auto* sparse = std::get_if<SparseColumns>(&x);
  return sparse != nullptr ? static_cast<index_t>(sparse->starts.size()) - 1
                           : std::get<DenseColumns>(x).shape[1];
}

index_t entries_of(const Columns& x) {
  const auto* sparse = std::get_if<SparseColumns>(&x);
  return sparse != nullptr ? static_cast<index_t>(sparse->values.size())
                           : std::get<DenseColumns>(x).size();
}

void require_columns(const char* function, const Columns& x) {
  std::visit([&](const auto& kind) { require_kind(function, kind); }, x);
}

ScaledColumns scaled_columns(const char* function, const Columns& x, const Exec& exec) {
  return std::visit(
      [&](const auto& kind) -> ScaledColumns {
        const index_t runs = runs_of(kind);
        std::vector<double> largest(at(runs));
        parallel_for(exec, runs, [&](index_t run, int) {
          double most = 0;
          bool finite = true;
          for (const double value : run_of(kind, run)) {
            most = std::max(most, std::abs(value));
            finite &= std::abs(value) <= std::numeric_limits<double>::max();
          }
          largest[at(run)] = finite ? most : -1;
        });
        const auto [least, most] = std::minmax_element(largest.begin(), largest.end());
        require(runs == 0 || *least >= 0, function,
                "x has NaN or infinite entries; expected finite numbers");
        if (runs == 0 || *most == 0 || (kSafeLeast < *most && *most < kSafeMost))
          return {x, 1.0, {}};
        int exponent = 0;
        (void)std::frexp(*most, &exponent);
        ScaledColumns scaled{x, std::ldexp(1.0, -std::clamp(exponent, -1021, 1021)),
                             Buffer<double>(entries_of(x))};
        double* to = scaled.copy.data();
        for (index_t run = 0; run < runs; ++run)
          for (const double value : run_of(kind, run)) *to++ = value * scaled.factor;
        scaled.columns = with_values(kind, scaled.copy.data());
        return scaled;
      },
      x);
}

std::vector<index_t> nonzero_columns(const Columns& x) {
  std::vector<char> is_nonzero(at(count_of(x)), 0);
  if (const auto* sparse = std::get_if<SparseColumns>(&x)) {
    for (index_t j = 0; j < count_of(x); ++j)
      for (index_t a = sparse->starts[at(j)]; a < sparse->starts[at(j + 1)]; ++a)
        is_nonzero[at(j)] |= sparse->values[at(a)] != 0;
  } else {
    for (index_t i = 0; i < rows_of(x); ++i) {
      const auto row = run_of(std::get<DenseColumns>(x), i);
      for (std::size_t j = 0; j < row.size(); ++j) is_nonzero[j] |= row[j] != 0;
    }
  }
  std::vector<index_t> indices;
  for (index_t j = 0; j < count_of(x); ++j)
    if (is_nonzero[at(j)] != 0) indices.push_back(j);
  return indices;
}

Dense take_columns(const Columns& x, std::span<const index_t> indices, const Exec& exec) {
  const std::vector<double> ones(indices.size(), 1.0);
  Dense taken(rows_of(x), static_cast<index_t>(indices.size()));
  reweighted_columns(x, indices, ones, taken.view(), exec);
  return taken;
}

void reweighted_columns(const Columns& x, std::span<const index_t> indices,
                        std::span<const double> weights, View<double, 2> out, const Exec& exec) {
  const char* name = "reweighted_columns";
  const auto count = static_cast<index_t>(indices.size());
  require_shape(name, "out", out.shape, {rows_of(x), count}, "to match x and indices");
  require(weights.size() == indices.size(), name,
          "weights has another length than indices; expected one for every column");
  for (const index_t index : indices)
    require(index >= 0 && index < count_of(x), name,
            "indices holds " + std::to_string(index) + "; expected 0 <= index < " +
                std::to_string(count_of(x)));
  if (const auto* sparse = std::get_if<SparseColumns>(&x)) {
    for (index_t i = 0; i < out.shape[0]; ++i)
      for (index_t c = 0; c < count; ++c) out(i, c) = 0.0;
    for (index_t c = 0; c < count; ++c)
      for (index_t a = sparse->starts[at(indices[at(c)])];
           a < sparse->starts[at(indices[at(c)] + 1)]; ++a)
        out(sparse->rows[at(a)], c) += sparse->values[at(a)] * weights[at(c)];
    return;
  }
  parallel_for(exec, out.shape[0], [&](index_t i, int) {
    const auto row = run_of(std::get<DenseColumns>(x), i);
    for (index_t c = 0; c < count; ++c) out(i, c) = row[at(indices[at(c)])] * weights[at(c)];
  });
}

void sparse_block(const SparseColumns& x, index_t first, index_t last, double* dense) {
  std::fill_n(dense, x.num_rows * (last - first), 0.0);
  for (index_t j = first; j < last; ++j)
    for (index_t a = x.starts[at(j)]; a < x.starts[at(j + 1)]; ++a)
      dense[(j - first) * x.num_rows + x.rows[at(a)]] += x.values[at(a)];
}

index_t cost_of_pairs(const SparseColumns& x, index_t first, index_t last) {
  index_t cost = 0;
  for (index_t j = first; j < last; ++j) {
    const index_t entries = x.starts[at(j + 1)] - x.starts[at(j)];
    cost += entries * (entries + 1) / 2 * kGather;
  }
  return cost;
}

}  // namespace convbasis
