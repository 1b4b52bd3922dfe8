#include "cuda/lowrank_product.h"
#include "cuda/lowrank_rows.h"

namespace convbasis::cuda {
namespace {

struct CountUp {
  std::int32_t* numbers;
  CONVBASIS_DEVICE void operator()(index_t, index_t i) const {
    numbers[i] = static_cast<std::int32_t>(i);
  }
};

/// Tokens from number `last` down; past the first one they only pad. A row is one variable of one
/// head.
template <class T>
struct ReverseTokens {
  const T* from;
  index_t tokens, last;
  index_t padded;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t row, index_t token) const {
    const index_t source = last - token;
    to[row * padded + token] = source >= 0 && source < tokens ? from[row * tokens + source] : T(0);
  }
};

}  // namespace

template <class T>
LowRankProduct<T>::LowRankProduct(const LowRankHeads<T>& heads, const MonomialTable& monomials,
                                  index_t rows, index_t keys, bool is_causal, bool transpose,
                                  const Stream& stream)
    : stream_(stream),
      monomials_(monomials),
      inputs_(transpose ? rows : keys),
      outputs_(transpose && !is_causal ? keys : rows),
      is_causal_(is_causal),
      is_reversed_(transpose && is_causal),
      numbers_(stream, heads.count),
      heads_(heads) {
  launch(stream, 1, heads.count, CountUp{numbers_.data()});
  heads_.listed = numbers_.data();
  if (!transpose) return;
  std::swap(heads_.queries, heads_.keys);
  std::swap(heads_.query_tokens, heads_.key_tokens);
  if (is_reversed_) reverse(heads);
}

template <class T>
void LowRankProduct<T>::reverse(const LowRankHeads<T>& heads) {
  const index_t variables = heads.count * (heads.head_dim + 1), padded = heads.query_tokens;
  tokens_ = DeviceBuffer<T>(stream_, 2 * variables * padded);
  T* of_queries = tokens_.data() + variables * padded;
  const index_t last = outputs_ - 1;
  launch(stream_, variables, padded,
         ReverseTokens<T>{heads.keys, heads.key_tokens, last, padded, tokens_.data()});
  launch(stream_, variables, padded,
         ReverseTokens<T>{heads.queries, padded, last, padded, of_queries});
  heads_.queries = tokens_.data();
  heads_.keys = of_queries;
  heads_.query_tokens = heads_.key_tokens = padded;
}

template <class T>
Array<T> LowRankProduct<T>::array(T* data, index_t rows, index_t channels) const {
  Array<T> whole = packed_array(data, heads_.count, rows, channels);
  if (is_reversed_) {
    whole.data = data + (rows - 1) * channels;
    whole.strides[2] = -channels;
  }
  return whole;
}

template <class T>
void LowRankProduct<T>::multiply(T* x, T* y, index_t channels) const {
  ChunkStates<T> states =
      plan_states<T>(monomials_, heads_.head_dim, channels, inputs_, heads_.count, is_causal_);
  const Array<T> values = array(x, inputs_, channels);
  sum_chunks(heads_, values, states, stream_);
  RowResults<T> results{array(y, outputs_, channels)};
  results.divides = false;
  attend_rows(heads_, states, {}, values, is_causal_, 1, results, stream_);
}

template class LowRankProduct<float>;
template class LowRankProduct<double>;

}  // namespace convbasis::cuda
