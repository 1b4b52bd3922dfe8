#include <limits>

#include "core/buffer.h"
#include "cuda/lowrank_tokens.h"
#include "cuda/numeric.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 256, kPartRows = 512;

/// The largest |entry - centre| of kPartRows rows of a head, those with a flag left out.
template <class T>
struct PartPeaks {
  Array<T> array;
  const std::int32_t* listed;
  const double* centres;        // (heads, channels); null: 0
  const std::int32_t* skipped;  // (all heads, rows); null: none
  index_t rows;
  std::uint32_t parts;
  double* peaks;  // (heads, parts)

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const auto number = static_cast<std::uint32_t>(block.index);
    const index_t item = number / parts, first = index_t{number % parts} * kPartRows;
    const index_t head = listed[item], last = first + kPartRows < rows ? first + kPartRows : rows;
    const auto channels = static_cast<std::uint32_t>(array.channels);
    const auto count = static_cast<std::uint32_t>(last - first) * channels;
    block.each(kThreads, [&](int t) {
      double peak = 0;
      for (auto i = static_cast<std::uint32_t>(t); i < count; i += kThreads) {
        const index_t row = first + i / channels, channel = i % channels;
        if (skipped != nullptr && skipped[head * rows + row] != 0) continue;
        const double middle = centres == nullptr ? 0 : centres[item * array.channels + channel];
        peak = larger_of(peak, fabs(static_cast<double>(array.load(head, row, channel)) - middle));
      }
      values[t] = peak;
    });
    max_all(block, values);
    block.each(1, [&](int) { peaks[block.index] = values[0]; });
  }
};

/// The CPU's key_exponent and scaling_exponent.
template <class T>
struct FindScales {
  const double *query_peaks, *key_peaks, *value_peaks;
  index_t query_parts, key_parts;
  double scale;
  HeadScales<T>* scales;

  static CONVBASIS_DEVICE double peak_of(const double* peaks, index_t parts) {
    double peak = 0;
    for (index_t i = 0; i < parts; ++i) peak = larger_of(peak, peaks[i]);
    return peak;
  }
  static CONVBASIS_DEVICE int value_exponent(double peak) {
    constexpr int kHeadroom = 40, kSmall = -20, kLargest = std::numeric_limits<T>::max_exponent;
    if (!(peak > 0 && is_finite(peak))) return 0;
    const int exponent = static_cast<int>(logb(peak)) + 1;
    if (exponent > kLargest - kHeadroom) return -kHeadroom;
    if (exponent >= kSmall) return 0;
    return -exponent < kLargest - kHeadroom ? -exponent : kLargest - kHeadroom;
  }
  CONVBASIS_DEVICE void operator()(index_t, index_t item) const {
    const double by_query = fabs(scale) * peak_of(query_peaks + item * query_parts, query_parts);
    const double by_key = peak_of(key_peaks + item * key_parts, key_parts);
    const bool balances = by_query > 0 && by_key > 0 && is_finite(by_query) && is_finite(by_key);
    const double half = balances ? floor((logb(by_query) - logb(by_key)) / 2) : 0;
    const double key = ldexp(1.0, static_cast<int>(half));
    const int exponent = value_exponent(peak_of(value_peaks + item * key_parts, key_parts));
    scales[item] = {scale / key, key, static_cast<T>(ldexp(1.0, exponent)),
                    static_cast<T>(ldexp(1.0, -exponent))};
  }
};

/// One variable of one head a row.
template <class T>
struct WriteTokens {
  LowRankHeads<T> heads;
  Array<T> array;
  bool of_keys;
  index_t tokens, padded;
  T* to;

  CONVBASIS_DEVICE void operator()(index_t row, index_t token) const {
    const auto variables = static_cast<std::uint32_t>(heads.head_dim + 1);
    const index_t item = static_cast<std::uint32_t>(row) / variables;
    const index_t variable = static_cast<std::uint32_t>(row) % variables;
    T value = 0;
    if (token < tokens && variable == heads.head_dim) {
      value = 1;
    } else if (token < tokens) {
      const auto entry = static_cast<double>(array.load(heads.listed[item], token, variable));
      value = of_keys ? heads.of_key(item, variable, entry) : heads.of_query(item, entry);
    }
    to[row * padded + token] = value;
  }
};

index_t padded(index_t tokens) {
  constexpr index_t kMultiple = LowRankTokens<float>::kTokenMultiple;
  return ceil_div(tokens, kMultiple) * kMultiple;
}

}  // namespace

template <class T>
index_t LowRankTokens<T>::bytes(index_t queries, index_t keys, index_t head_dim) {
  return (padded(queries) + padded(keys)) * (head_dim + 1) * static_cast<index_t>(sizeof(T));
}

template <class T>
LowRankTokens<T>::LowRankTokens(std::span<const index_t> listed,
                                std::span<const HeadPolynomial> polynomials, const Array<T>& query,
                                const Array<T>& key, const Array<T>& value, index_t seen,
                                double scale, const std::int32_t* skipped, const Stream& stream) {
  const auto count = static_cast<index_t>(listed.size());
  const index_t head_dim = query.channels;
  std::vector<std::int32_t> heads;
  std::vector<double> numbers, centres;
  for (const index_t head : listed) {
    const HeadPolynomial& polynomial = polynomials[static_cast<std::size_t>(head)];
    heads.push_back(static_cast<std::int32_t>(head));
    numbers.insert(numbers.end(), polynomial.coefficients.begin(), polynomial.coefficients.end());
    centres.insert(centres.end(), polynomial.centre.begin(), polynomial.centre.end());
    centres.resize(heads.size() * static_cast<std::size_t>(head_dim), 0.0);
  }
  const auto coefficients = static_cast<index_t>(numbers.size());
  numbers.insert(numbers.end(), centres.begin(), centres.end());
  listed_ = upload<std::int32_t>(stream, heads);
  numbers_ = upload<double>(stream, numbers);
  scales_ = DeviceBuffer<HeadScales<T>>(stream, count);
  const double* centre = numbers_.data() + coefficients;

  const index_t query_parts = ceil_div(query.rows, kPartRows);
  const index_t key_parts = ceil_div(seen, kPartRows);
  const DeviceBuffer<double> peaks(stream, count * (query_parts + 2 * key_parts));
  double* key_peaks = peaks.data() + count * query_parts;
  double* value_peaks = key_peaks + count * key_parts;
  const auto measure = [&](const Array<T>& array, const double* centres_of,
                           const std::int32_t* flags, index_t rows, index_t parts, double* to) {
    launch_blocks<kThreads>(stream, count * parts, sizeof(double) * kThreads,
                            PartPeaks<T>{array, listed_.data(), centres_of, flags, rows,
                                         static_cast<std::uint32_t>(parts), to});
  };
  measure(query, nullptr, skipped, query.rows, query_parts, peaks.data());
  measure(key, centre, nullptr, seen, key_parts, key_peaks);
  measure(value, nullptr, nullptr, seen, key_parts, value_peaks);
  launch(stream, 1, count,
         FindScales<T>{peaks.data(), key_peaks, value_peaks, query_parts, key_parts, scale,
                       scales_.data()});

  const index_t queries = padded(query.rows), keys = padded(seen);
  tokens_ = DeviceBuffer<T>(stream, count * (head_dim + 1) * (queries + keys));
  T* key_tokens = tokens_.data() + count * (head_dim + 1) * queries;
  heads_ = {listed_.data(), numbers_.data(), centre, scales_.data(),
            tokens_.data(), key_tokens,      count,  coefficients / count - 1,
            head_dim,       queries,         keys};
  launch(stream, count * (head_dim + 1), queries,
         WriteTokens<T>{heads_, query, false, query.rows, queries, tokens_.data()});
  launch(stream, count * (head_dim + 1), keys,
         WriteTokens<T>{heads_, key, true, seen, keys, key_tokens});
}

template class LowRankTokens<float>;
template class LowRankTokens<double>;

}  // namespace convbasis::cuda
