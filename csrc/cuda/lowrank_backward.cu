#include "convbasis/cuda.h"
#include "core/head_polynomial.h"
#include "cuda/exact_backward.h"
#include "cuda/lowrank_terms.h"
#include "cuda/rounding.h"

// Which heads have a row without positive weight is known on the device alone. Their gradients are
// formed with those of all others, and written over exactly: thread blocks of heads without such a
// row end at once, so that nothing waits to know.

namespace convbasis::cuda {
namespace {

constexpr const char* kName = "polynomial_attention_backward";

/// Flags the heads of flagged rows.
struct FlagHeads {
  const std::int32_t* spoiled;  // (all heads, rows)
  index_t rows;
  std::int32_t* heads;
  CONVBASIS_DEVICE void operator()(index_t head, index_t row) const {
    if (spoiled[head * rows + row] != 0) heads[head] = 1;
  }
};

template <class T>
struct PutHeads {
  Array<T> from, to;
  const std::int32_t* listed;
  CONVBASIS_DEVICE void operator()(index_t item, index_t i) const {
    const auto [row, c] = position_of(i, to.channels);
    to.store(listed[item], row, c, from.load(listed[item], row, c));
  }
};

/// Adds what the listed heads of a group give to the gradient that they share, in their order.
template <class T>
struct AddListed {
  Array<T> from, to;
  const std::int32_t *listed, *begins;
  CONVBASIS_DEVICE void operator()(index_t group, index_t i) const {
    const auto [row, c] = position_of(i, from.channels);
    double total = 0;
    for (std::int32_t at = begins[group]; at < begins[group + 1]; ++at)
      total += static_cast<double>(from.load(listed[at], row, c));
    const index_t head = listed[begins[group]];
    const auto before = static_cast<double>(to.load(head, row, c));
    to.store(head, row, c, static_cast<T>(before + total));
  }
};

/// Rows of T of all flat heads that begin as 0.
template <class T>
struct Sums {
  Sums(index_t all, index_t rows, index_t channels, const Stream& stream)
      : memory(stream, all * rows * channels),
        array(packed_array(memory.data(), all, rows, channels)) {
    fill_zero(stream, memory.data(), static_cast<std::size_t>(memory.size()) * sizeof(T));
  }
  DeviceBuffer<T> memory;
  Array<T> array;
};

/// The heads of a call: those that a polynomial stands in, by degree, and all of them, by key heads
/// and one by one.
struct CallHeads {
  HeadsOfDegrees by_degree;
  std::vector<std::int32_t> exact;  // flags of all heads
  HeadGroups groups, single;
};

CallHeads heads_of(std::span<const HeadPolynomial> polynomials, const std::vector<Group>& groups,
                   index_t query_heads, const Stream& stream) {
  CallHeads heads;
  heads.exact.assign(polynomials.size(), 0);
  std::vector<Group> single;
  for (const Group& group : groups)
    for (const index_t h : group.heads) {
      single.push_back({group.batch, group.kv_head, {h}});
      const index_t flat = group.batch * query_heads + h;
      const HeadPolynomial& polynomial = polynomials[static_cast<std::size_t>(flat)];
      if (polynomial.exact_rows.empty()) {
        heads.by_degree[degree_of(polynomial)].push_back(flat);
      } else {
        heads.exact[static_cast<std::size_t>(flat)] = 1;
      }
    }
  heads.groups = upload_groups(groups, query_heads, stream);
  heads.single = upload_groups(single, query_heads, stream);
  return heads;
}

/// What all gradients need of the rows, from the forward pass.
template <class T>
Shares<T> shares_of(const CallHeads& heads, std::span<const HeadPolynomial> polynomials,
                    const LowRankOperands<T>& operands, const Array<T>& grad_output, index_t all,
                    std::int32_t* exact, const Stream& stream) {
  const index_t rows = operands.query.rows;
  const Sums<T> output(all, rows, operands.value.channels, stream);
  HeadsForward<T> forward;
  forward.sums = DeviceBuffer<double>(stream, all * rows);
  forward.peaks = DeviceBuffer<double>(stream, all);
  forward.spoiled = DeviceBuffer<std::int32_t>(stream, all * rows);
  fill_zero(stream, forward.sums.data(), static_cast<std::size_t>(all * rows) * sizeof(double));
  fill_zero(stream, forward.spoiled.data(), static_cast<std::size_t>(all * rows) * 4);
  attend_by_polynomials<T>(heads.by_degree, polynomials, operands,
                           {output.array, {}, forward.sums.data(), forward.spoiled.data()}, stream);
  launch(stream, all, rows, FlagHeads{forward.spoiled.data(), rows, exact});
  const DeviceBuffer<double> squares(stream, all * operands.value.rows);
  measure_rows(operands.value, all, squares.data(), forward.peaks.data(), stream);
  return divide_by_sums(forward, operands.value, grad_output, output.array, stream);
}

/// Adds the gradients of all heads that a polynomial stands in.
template <class T>
void add_by_degree(const CallHeads& heads, std::span<const HeadPolynomial> polynomials,
                   const LowRankGradient<T>& gradient, const Stream& stream) {
  const LowRankOperands<T>& operands = gradient.operands;
  for (const auto& [degree, listed] : heads.by_degree) {
    const Monomials monomials(operands.query.channels, degree, stream);
    const index_t bytes =
        gradient_bytes(gradient, monomials.table(), static_cast<index_t>(listed.size()));
    for_each_part(listed, bytes, [&](std::span<const index_t> part) {
      // Values have units already, and what is multiplied here has them in it.
      const LowRankTokens<T> tokens(part, polynomials, operands.query, operands.key, {},
                                    operands.keys(), operands.scale, nullptr, stream);
      add_gradients(gradient, tokens.heads(), monomials.table(), stream);
    });
  }
}

/// `arrays` with keys that some query sees alone.
template <class T>
void differentiate(const BackwardArrays<T>& arrays, const CallHeads& heads,
                   std::span<const HeadPolynomial> polynomials, double scale, bool is_causal,
                   const Stream& stream) {
  const auto all = static_cast<index_t>(polynomials.size());
  const index_t rows = arrays.query.rows, keys = arrays.key.rows, values = arrays.value.channels;
  const Sums<T> of_query(all, rows, arrays.query.channels, stream);
  if (keys > 0) {
    const Sums<T> of_key(all, keys, arrays.key.channels, stream),
        of_value(all, keys, values, stream);
    const LowRankOperands<T> operands{arrays.query, arrays.key, arrays.value, scale, is_causal};
    const DeviceBuffer<std::int32_t> exact = upload<std::int32_t>(stream, heads.exact);
    {
      const Shares<T> shares =
          shares_of(heads, polynomials, operands, arrays.grad_output, all, exact.data(), stream);
      const index_t query_heads = arrays.value.heads, kv_heads = query_heads / arrays.value.group;
      const Array<T> centred = array_of(
          contiguous_view<T, 4>(shares.value.data(), {all / query_heads, kv_heads, keys, values}),
          query_heads);
      const LowRankGradient<T> gradient{
          operands,
          {packed_array(shares.shares.data(), all, rows, values), shares.delta_shares.data()},
          {centred, nullptr},
          shares.units.data(),
          of_query.array,
          of_key.array,
          of_value.array};
      add_by_degree(heads, polynomials, gradient, stream);
    }
    BackwardArrays<T> each = arrays;
    each.grad_query = of_query.array;
    each.grad_key = of_key.array;
    each.grad_value = of_value.array;
    differentiate_exactly(each, heads.single, all, scale, is_causal, exact.data(), stream);
    const auto add = [&](const Array<T>& from, const Array<T>& to) {
      launch(stream, heads.groups.count(), keys * from.channels,
             AddListed<T>{from, to, heads.groups.heads.data(), heads.groups.begins.data()});
    };
    add(of_key.array, arrays.grad_key);
    add(of_value.array, arrays.grad_value);
  }
  launch(stream, heads.groups.heads.size(), rows * arrays.query.channels,
         PutHeads<T>{of_query.array, arrays.grad_query, heads.groups.heads.data()});
}

}  // namespace

template <class E>
void polynomial_attention_backward(View<const E, 4> query, View<const E, 4> key,
                                   View<const E, 4> value, View<const E, 4> grad_output,
                                   View<E, 4> grad_query, View<E, 4> grad_key,
                                   View<E, 4> grad_value,
                                   std::span<const HeadPolynomial> polynomials,
                                   const AttentionOptions& options, std::span<const index_t> heads,
                                   const Stream& stream) {
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  require_shape(kName, "grad_output", grad_output.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  const HeadList list(kName, heads, batch * query_heads);
  require_polynomials(kName, polynomials, batch * query_heads, n, key.shape[2], head_dim);
  require_supported(kName, options, polynomials, head_dim);
  if (batch * query_heads * n == 0) return;

  const DeviceGuard guard(stream.device);
  const index_t seen = options.is_causal ? std::min(n, key.shape[2]) : key.shape[2];
  const auto of = [&](const auto& view) { return array_of(view, query_heads); };
  const auto of_seen = [&](const auto& view) {
    auto array = array_of(view, query_heads);
    array.rows = seen;
    return array;
  };
  const CallHeads listed =
      heads_of(polynomials, groups_of(list, batch, query_heads, key.shape[1]), query_heads, stream);
  differentiate<Compute<E>>({of(query), of_seen(key), of_seen(value), of(grad_output),
                             of(grad_query), of_seen(grad_key), of_seen(grad_value)},
                            listed, polynomials, scale_of(options, head_dim), options.is_causal,
                            stream);
}

#define CONVBASIS_INSTANTIATE(E)                                                          \
  template void polynomial_attention_backward(                                            \
      View<const E, 4>, View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>, \
      View<E, 4>, View<E, 4>, std::span<const HeadPolynomial>, const AttentionOptions&,   \
      std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
