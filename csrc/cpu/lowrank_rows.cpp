#include "cpu/lowrank_rows.h"

#include <algorithm>

namespace convbasis {
namespace {

constexpr index_t kFormed = 256;  // features of a block of rows that fit the first cache

}  // namespace

template <class T>
LowRankRows<T>::LowRankRows(const Monomials& monomials, std::span<const T> coefficients,
                            const LowRankKeys<T>& keys)
    : kernels_(kernels<T>().low_rank),
      monomials_(monomials),
      coefficients_(coefficients),
      keys_(keys),
      forms_all_(monomials.count() <= kFormed),
      query_(keys.head_dim * kRowBlock),
      features_((forms_all_ ? monomials.count() : monomials.lower_count()) * kRowBlock),
      weights_(kSingleKeys * kRowBlock),
      sums_(keys.groups.padded() * kRowBlock) {}

template <class T>
void LowRankRows<T>::select(const View<const T, 2>& query, double scale,
                            std::span<const index_t> rows) {
  rows_ = rows;
  std::fill_n(query_.data(), query_.size(), T(0));
  std::fill_n(sums_.data(), sums_.size(), T(0));
  for (std::size_t r = 0; r < rows.size(); ++r)
    for (index_t c = 0; c < keys_.head_dim; ++c)
      query_[c * kRowBlock + static_cast<index_t>(r)] =
          static_cast<T>(scale * static_cast<double>(query(rows[r], c)));
}

/// Monomials that fit the first cache are all formed. Of more, those of the highest degree are
/// products of a variable with a run of lower ones, and never stored.
template <class T>
void LowRankRows<T>::add_state(const T* state, index_t group_size) {
  const auto formed = forms_all_ ? monomials_.runs() : monomials_.lower_runs();
  kernels_.monomials_across(query_.data(), formed.data(), static_cast<index_t>(formed.size()),
                            features_.data());
  const ValueGroups& groups = keys_.groups;
  for (index_t g = 0; g < groups.count; ++g, state += group_size) {
    T* out = sums_.data() + g * groups.size * kRowBlock;
    kernels_.add_state_product(
        {features_.data(), nullptr, features_.size() / kRowBlock, state, 0, out}, groups.size);
    if (forms_all_) continue;
    for (const MonomialRun& run : monomials_.top_runs())
      kernels_.add_state_product(
          {features_.data() + run.parent * kRowBlock, query_.data() + run.variable * kRowBlock,
           run.count, state, run.first, out},
          groups.size);
  }
}

template <class T>
void LowRankRows<T>::add_keys(index_t begin, index_t end, std::span<const index_t> start,
                              std::span<const index_t> stop) {
  const index_t count = end - begin;
  T first[kRowBlock] = {}, last[kRowBlock] = {};
  for (std::size_t r = 0; r < start.size(); ++r) {
    first[r] = static_cast<T>(std::clamp<index_t>(start[r] - begin, 0, count));
    last[r] = static_cast<T>(std::clamp<index_t>(stop[r] - begin, 0, count));
  }
  weigh(begin, count, first, last);
  add_weighed(begin, count);
}

template <class T>
void LowRankRows<T>::add_keys_by_rows(index_t begin, std::span<const index_t> from,
                                      std::span<const index_t> to) {
  const index_t count = static_cast<index_t>(from.size());
  T first[kRowBlock] = {}, last[kRowBlock];
  std::fill_n(last, kRowBlock, static_cast<T>(count));
  weigh(begin, count, first, last);
  for (std::size_t t = 0; t < from.size(); ++t) {
    T* weights = weights_.data() + static_cast<index_t>(t) * kRowBlock;
    std::fill(weights, weights + from[t], T(0));
    std::fill(weights + to[t], weights + kRowBlock, T(0));
  }
  add_weighed(begin, count);
}

template <class T>
void LowRankRows<T>::weigh(index_t begin, index_t count, const T* start, const T* stop) {
  kernels_.polynomial_tile({query_.data(), keys_.keys.data() + begin * keys_.head_dim,
                            keys_.head_dim, count, keys_.head_dim, coefficients_.data(),
                            static_cast<index_t>(coefficients_.size()) - 1, start, stop,
                            weights_.data()});
}

/// Weights of keys and blocks of values stand to each other as features and a state do.
template <class T>
void LowRankRows<T>::add_weighed(index_t begin, index_t count) {
  const ValueGroups& groups = keys_.groups;
  for (index_t g = 0; g < groups.count; ++g)
    kernels_.add_state_product(
        {weights_.data(), nullptr, count, keys_.blocks.data() + g * keys_.block_size(), begin,
         sums_.data() + g * groups.size * kRowBlock},
        groups.size);
}

template <class T>
void LowRankRows<T>::add_to(Rows<T> sums) const {
  const index_t width = keys_.groups.padded();
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    T* row = sums.row(rows_[r]);
    for (index_t m = 0; m < width; ++m) row[m] += sums_[m * kRowBlock + static_cast<index_t>(r)];
  }
}

template class LowRankRows<float>;
template class LowRankRows<double>;

}  // namespace convbasis
