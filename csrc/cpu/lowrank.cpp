#include "convbasis/lowrank.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "convbasis/attention.h"
#include "core/head_polynomial.h"
#include "core/heads.h"
#include "core/mask.h"
#include "core/shape.h"
#include "cpu/lowrank_change.h"
#include "cpu/lowrank_columns.h"
#include "cpu/lowrank_part.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

constexpr const char* kName = "polynomial_attention";

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Arrays of one head.
template <class T>
struct Head {
  View<const T, 2> query, key, value;
  View<T, 2> out;
  View<T, 1> lse;  ///< may be empty
};

/// Rows of one head by exact attention.
template <class T>
void attend_exactly(const Head<T>& head, const std::vector<index_t>& rows,
                    const AttentionOptions& options, const Exec& exec) {
  if (rows.empty()) return;
  const index_t count = static_cast<index_t>(rows.size()), channels = head.value.shape[1];
  const auto whole = [](const View<const T, 2>& matrix) {
    return View<const T, 4>{matrix.data,
                            {1, 1, matrix.shape[0], matrix.shape[1]},
                            {0, 0, matrix.strides[0], matrix.strides[1]}};
  };
  Buffer<T> out(count * channels), lse(count);
  attention_rows<T>(whole(head.query), whole(head.key), whole(head.value),
                    contiguous_view<const index_t, 3>(rows.data(), {1, 1, count}),
                    contiguous_view<T, 4>(out.data(), {1, 1, count, channels}),
                    contiguous_view<T, 3>(lse.data(), {1, 1, count}), options, {}, exec);
  for (index_t r = 0; r < count; ++r) {
    write_row(out.data() + r * channels, head.out, rows[at(r)]);
    if (head.lse.data != nullptr) head.lse(rows[at(r)]) = lse[r];
  }
}

/// Divides numerators by row sums, whose logs it gives; and the rows whose sum is no positive
/// number.
template <class T>
std::vector<index_t> divide(const Head<T>& head, Rows<const T> sums,
                            const std::vector<char>& sees_any, T unscale, double* log_sums,
                            const Exec& exec) {
  const index_t n = head.out.shape[0], channels = head.out.shape[1];
  std::vector<char> is_spoiled(at(n), 0);
  for_each_row(exec, n, [&](index_t i) {
    const T* row = sums.row(i);
    const T total = row[channels];
    log_sums[i] = -std::numeric_limits<double>::infinity();
    if (sees_any[at(i)] != 0 && (!(total > T(0)) || !std::isfinite(total))) is_spoiled[at(i)] = 1;
    const bool is_good = sees_any[at(i)] != 0 && is_spoiled[at(i)] == 0;
    const T factor = is_good ? unscale / total : T(0);
    T* to = head.out.data + i * head.out.strides[0];
    const index_t step = head.out.strides[1];
    for (index_t c = 0; c < channels; ++c) to[c * step] = is_good ? row[c] * factor : T(0);
    if (is_good) log_sums[i] = std::log(static_cast<double>(total));
  });
  std::vector<index_t> spoiled;
  for (index_t i = 0; i < n; ++i)
    if (is_spoiled[at(i)] != 0) spoiled.push_back(i);
  return spoiled;
}

/// The lse, with what the centre of the keys took off every logit of a row.
template <class T>
void write_lse(const Head<T>& head, const double* log_sums, std::span<const double> centre,
               double scale) {
  if (head.lse.data == nullptr) return;
  for (index_t i = 0; i < head.out.shape[0]; ++i) {
    double taken_off = 0;
    for (std::size_t c = 0; c < centre.size(); ++c)
      taken_off += static_cast<double>(head.query(i, static_cast<index_t>(c))) * centre[c];
    head.lse(i) = static_cast<T>(log_sums[i] + scale * taken_off);
  }
}

/// Returns the number of rows computed exactly.
template <class T>
index_t attend(const Head<T>& head, const HeadPolynomial& polynomial,
               const AttentionOptions& options, const Exec& exec) {
  const index_t n_q = head.query.shape[0], head_dim = head.query.shape[1];
  const double scale = scale_of(options, head_dim);
  const Monomials monomials(head_dim, static_cast<index_t>(polynomial.coefficients.size()) - 1);
  std::vector<double> centre = polynomial.centre;
  centre.resize(at(head_dim), 0.0);
  const ValueGroups groups(head.value.shape[1] + 1);
  const index_t width = groups.padded();
  Buffer<T> numbers(n_q * width);
  std::fill_n(numbers.data(), numbers.size(), T(0));
  std::vector<char> sees_any(at(n_q), 0);
  const std::vector<index_t> keys = numbers_without(head.key.shape[0], polynomial.exact_columns);
  const std::vector<index_t> rows = numbers_without(n_q, polynomial.exact_rows);
  const int exponent = value_exponent(head.value);
  const LowRankScales<T> scales{
      std::ldexp(1.0, key_exponent<T>(head.query, rows, head.key, keys, centre, scale)),
      std::ldexp(T(1), exponent)};
  const double query_scale = scale / scales.key;
  if (const auto* change = std::get_if<masks::RowChange>(&options.mask)) {
    if (!polynomial.exact_columns.empty())
      throw Unsupported("[" + std::string(kName) +
                        "] polynomials hold exact columns with a RowChange mask; expected none, or "
                        "a mask of windows or patterns; got " +
                        std::to_string(polynomial.exact_columns.size()));
    const index_t tile_rows = std::min<index_t>(chunk_rows(monomials, groups), 128);
    const LowRankChange<T> product(
        monomials, polynomial.coefficients,
        change_tiles(kName, *change, options.is_causal, n_q, keys, head.key.shape[0], tile_rows),
        head.key, head.value, centre, scales, exec);
    product.add(head.query, query_scale, {numbers.data(), width}, exec);
    sees_any = product.sees_any();
  } else {
    for (KeyWindows& windows : key_windows(options.mask, options.is_causal, n_q, keys)) {
      const LowRankPart<T> part(monomials, polynomial.coefficients, std::move(windows), head.key,
                                head.value, centre, scales, exec);
      part.add(head.query, query_scale, {numbers.data(), width}, exec);
      for (const index_t row : part.windows().rows) sees_any[at(row)] = 1;
    }
  }
  Buffer<double> log_sums(n_q);
  const std::vector<index_t> spoiled = divide(head, Rows<const T>{numbers.data(), width}, sees_any,
                                              std::ldexp(T(1), -exponent), log_sums.data(), exec);
  if (!polynomial.exact_columns.empty())
    join_exact_columns(head.query, head.key, head.value, polynomial.exact_columns, centre, scale,
                       options, head.out, log_sums.data(), exec);
  write_lse(head, log_sums.data(), centre, scale);
  std::vector<index_t> exact;
  std::set_union(spoiled.begin(), spoiled.end(), polynomial.exact_rows.begin(),
                 polynomial.exact_rows.end(), std::back_inserter(exact));
  attend_exactly(head, exact, options, exec);
  return static_cast<index_t>(exact.size());
}

}  // namespace

template <class T>
LowRankReport polynomial_attention(View<const T, 4> query, View<const T, 4> key,
                                   View<const T, 4> value, View<T, 4> out, View<T, 3> lse,
                                   std::span<const HeadPolynomial> polynomials,
                                   const AttentionOptions& options, std::span<const index_t> heads,
                                   const Exec& exec) {
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "out", out.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  if (lse.data != nullptr)
    require_shape(kName, "lse", lse.shape, {batch, query_heads, n}, "to match query");
  require_mask(kName, options.mask, n, key.shape[2]);
  const HeadList list(kName, heads, batch * query_heads);
  require_polynomials(kName, polynomials, batch * query_heads, n, key.shape[2], head_dim);
  LowRankReport report{std::vector<index_t>(polynomials.size(), 0),
                       std::vector<index_t>(polynomials.size(), 0)};
  if (batch * query_heads * n == 0) return report;
  for_each_head(exec, list.size(), [&](index_t i, const Exec& inside) {
    const index_t flat = list[i];
    const auto [b, h, g] = head_index(flat, query_heads, key.shape[1]);
    const HeadPolynomial& polynomial = polynomials[at(flat)];
    const View<T, 1> head_lse = lse.data == nullptr
                                    ? View<T, 1>{}
                                    : View<T, 1>{lse.data + b * lse.strides[0] + h * lse.strides[1],
                                                 {lse.shape[2]},
                                                 {lse.strides[2]}};
    report.rows_exact[at(flat)] =
        attend<T>({head_view(query, b, h), head_view(key, b, g), head_view(value, b, g),
                   head_view(out, b, h), head_lse},
                  polynomial, options, inside);
    report.rank[at(flat)] = rank_of(polynomial, query.shape[3]);
  });
  return report;
}

#define CONVBASIS_INSTANTIATE(T)                                                          \
  template LowRankReport polynomial_attention(                                            \
      View<const T, 4>, View<const T, 4>, View<const T, 4>, View<T, 4>, View<T, 3>,       \
      std::span<const HeadPolynomial>, const AttentionOptions&, std::span<const index_t>, \
      const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
