#include "cuda/lowrank_product.h"
#include "cuda/lowrank_terms.h"

namespace convbasis::cuda {
namespace {

/// Channels of one product, for who has less in a term.
constexpr index_t kSlabChannels = 64;

/// What a gradient is taken by.
enum class By { query, key, value };

/// Terms that share a product: columns are (terms, variables).
struct Slab {
  index_t first, terms, variables, channels;
};

/// A number of each row and term times the row of the other side: of its key by queries, of its
/// query by keys, and 1 by values.
template <class T>
struct FormTerms {
  LowRankHeads<T> heads;
  Array<T> other;
  By by;
  TermFactors<T> factors;
  Slab slab;
  index_t rows;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t item, index_t i) const {
    const auto [row, column] = position_of(i, slab.channels);
    const auto [term, variable] = position_of(column, slab.variables);
    const index_t head = heads.listed[item];
    T number = factors.at(head, row, slab.first + term);
    if (by != By::value) {
      const auto entry = static_cast<double>(other.load(head, row, variable));
      number *= by == By::query ? heads.of_key(item, variable, entry) : heads.of_query(item, entry);
    }
    to[item * rows * slab.channels + i] = number;
  }
};

/// Adds what the terms of a product are, times the row's own numbers, without units.
template <class T>
struct AddTerms {
  LowRankHeads<T> heads;
  By by;
  TermFactors<T> factors;
  Slab slab;
  index_t rows;
  const T* from;
  const HeadUnits* units;
  Array<T> grad;
  CONVBASIS_DEVICE void operator()(index_t item, index_t i) const {
    const index_t width = by == By::value ? slab.terms : slab.variables;
    const auto [row, column] = position_of(i, width);
    const index_t head = heads.listed[item];
    const T* mine = from + (item * rows + row) * slab.channels + column;
    if (by == By::value) {
      const index_t c = slab.first + column;
      const double sum = units[head].without_grad(static_cast<double>(*mine));
      grad.store(head, row, c, grad.load(head, row, c) + static_cast<T>(sum));
      return;
    }
    T sum = 0;
    for (index_t term = 0; term < slab.terms; ++term)
      sum += factors.at(head, row, slab.first + term) * mine[term * slab.variables];
    const double factor = by == By::query ? heads.scales[item].query : heads.scales[item].key;
    const double whole = units[head].without_both(static_cast<double>(sum), factor);
    grad.store(head, row, column, grad.load(head, row, column) + static_cast<T>(whole));
  }
};

/// The terms of one gradient, slab by slab.
template <class T>
void add_terms(By by, const LowRankGradient<T>& gradient, const LowRankHeads<T>& heads,
               const LowRankProduct<T>& product, const Stream& stream) {
  const bool by_query = by == By::query;
  const Array<T>& other = by_query ? gradient.operands.key : gradient.operands.query;
  const Array<T>& grad = by_query        ? gradient.grad_query
                         : by == By::key ? gradient.grad_key
                                         : gradient.grad_value;
  const TermFactors<T>& before = by_query ? gradient.of_keys : gradient.of_rows;
  const TermFactors<T>& after = by_query ? gradient.of_rows : gradient.of_keys;
  const index_t values = gradient.of_keys.numbers.channels;
  const index_t terms = by == By::value ? values : values + 1;
  const index_t variables = by == By::value ? 1 : heads.head_dim;
  const index_t together = std::min(std::max(kSlabChannels / variables, index_t{1}), terms);
  const index_t inputs = product.inputs(), outputs = product.outputs();
  const DeviceBuffer<T> x(stream, heads.count * inputs * together * variables);
  const DeviceBuffer<T> y(stream, heads.count * outputs * together * variables);
  for (index_t first = 0; first < terms; first += together) {
    const index_t count = std::min(together, terms - first);
    const Slab slab{first, count, variables, count * variables};
    launch(stream, heads.count, inputs * slab.channels,
           FormTerms<T>{heads, other, by, before, slab, inputs, x.data()});
    product.multiply(x.data(), y.data(), slab.channels);
    launch(stream, heads.count, grad.rows * (by == By::value ? slab.terms : variables),
           AddTerms<T>{heads, by, after, slab, outputs, y.data(), gradient.units, grad});
  }
}

}  // namespace

template <class T>
index_t gradient_bytes(const LowRankGradient<T>& gradient, const MonomialTable& monomials,
                       index_t heads) {
  const LowRankOperands<T>& operands = gradient.operands;
  const index_t head_dim = operands.query.channels, rows = operands.query.rows;
  const index_t keys = operands.keys(), channels = std::max(kSlabChannels, head_dim);
  const index_t states =
      plan_states<T>(monomials, head_dim, channels, std::max(rows, keys), heads, operands.is_causal)
          .of_head();
  const index_t reversed = operands.is_causal ? rows : 0;
  return LowRankTokens<T>::bytes(rows + reversed, keys + reversed, head_dim) +
         static_cast<index_t>(sizeof(T)) * (states + (rows + std::max(rows, keys)) * channels);
}

template <class T>
void add_gradients(const LowRankGradient<T>& gradient, const LowRankHeads<T>& heads,
                   const MonomialTable& monomials, const Stream& stream) {
  const LowRankOperands<T>& operands = gradient.operands;
  const auto product = [&](bool transpose) {
    return LowRankProduct<T>(heads, monomials, operands.query.rows, operands.keys(),
                             operands.is_causal, transpose, stream);
  };
  add_terms(By::query, gradient, heads, product(false), stream);
  const LowRankProduct<T> transposed = product(true);
  add_terms(By::key, gradient, heads, transposed, stream);
  add_terms(By::value, gradient, heads, transposed, stream);
}

#define CONVBASIS_INSTANTIATE(T)                                                             \
  template index_t gradient_bytes(const LowRankGradient<T>&, const MonomialTable&, index_t); \
  template void add_gradients(const LowRankGradient<T>&, const LowRankHeads<T>&,             \
                              const MonomialTable&, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
