#include <limits>

#include "core/buffer.h"
#include "core/shape.h"
#include "cuda/buffer.h"
#include "cuda/element.h"
#include "cuda/numeric.h"

namespace convbasis::cuda {
namespace {

constexpr const char* kName = "logit_range";
constexpr int kThreads = 256, kPartRows = 512;

/// Sums of `factor` times each channel of kPartRows keys: thread t sums every (kThreads / lanes)-th
/// row of one channel.
template <class T>
struct SumPart {
  static constexpr int kLanes = 32, kGroups = kThreads / kLanes;
  Array<T> key;
  index_t rows;
  std::uint32_t parts;
  double factor;
  double* sums;  // (heads, parts, channels)

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const auto number = static_cast<std::uint32_t>(block.index);
    const index_t head = number / parts, first = index_t{number % parts} * kPartRows;
    const index_t last = first + kPartRows < rows ? first + kPartRows : rows;
    for (index_t channel = 0; channel < key.channels; channel += kLanes) {
      block.each(kThreads, [&](int t) {
        const index_t c = channel + t % kLanes;
        double sum = 0;
        for (index_t row = first + t / kLanes; row < last && c < key.channels; row += kGroups)
          sum += factor * static_cast<double>(key.load(head, row, c));
        values[t] = sum;
      });
      block.each(kLanes, [&](int lane) {
        if (channel + lane >= key.channels) return;
        double sum = 0;
        for (int group = 0; group < kGroups; ++group) sum += values[group * kLanes + lane];
        sums[block.index * key.channels + channel + lane] = sum;
      });
    }
  }
};

/// The mean as the type that is computed in holds it.
template <class T>
struct Mean {
  const double* sums;
  index_t parts, channels;
  double* centre;  // (heads, channels)
  CONVBASIS_DEVICE void operator()(index_t head, index_t channel) const {
    double sum = 0;
    for (index_t part = 0; part < parts; ++part)
      sum += sums[(head * parts + part) * channels + channel];
    centre[head * channels + channel] = static_cast<double>(static_cast<T>(sum));
  }
};

/// The largest squared norm of kPartRows rows less a centre; infinity for what is not finite.
/// kLanes threads have a row.
template <class T>
struct LargestPart {
  static constexpr int kLanes = 8, kGroups = kThreads / kLanes;
  Array<T> array;
  const double* centre;  // (heads, channels); null: 0
  index_t rows;
  std::uint32_t parts;
  double* largest;  // (heads, parts)

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    auto* values = reinterpret_cast<double*>(block.shared);
    const auto number = static_cast<std::uint32_t>(block.index);
    const index_t head = number / parts, first = index_t{number % parts} * kPartRows;
    const index_t last = first + kPartRows < rows ? first + kPartRows : rows;
    PerThread<double, kThreads> top;
    block.each(kThreads, [&](int t) { top[t] = 0; });
    for (index_t begin = first; begin < last; begin += kGroups) {
      block.each(kThreads, [&](int t) {
        const index_t row = begin + t / kLanes;
        double sum = 0;
        for (index_t c = t % kLanes; c < array.channels && row < last; c += kLanes) {
          const double middle = centre == nullptr ? 0 : centre[head * array.channels + c];
          const double entry = static_cast<double>(array.load(head, row, c)) - middle;
          sum += entry * entry;
        }
        values[t] = sum;
      });
      block.each(kGroups, [&](int group) {
        double sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum += values[group * kLanes + lane];
        top[group] = larger_of(top[group], is_finite(sum) ? sum : static_cast<double>(INFINITY));
      });
    }
    block.each(kThreads, [&](int t) { values[t] = top[t]; });
    max_all(block, values);
    block.each(1, [&](int) { largest[block.index] = values[0]; });
  }
};

struct LargestOfParts {
  const double* parts_of;
  index_t parts;
  double* largest;
  CONVBASIS_DEVICE void operator()(index_t, index_t head) const {
    double top = 0;
    for (index_t part = 0; part < parts; ++part)
      top = larger_of(top, parts_of[head * parts + part]);
    largest[head] = top;
  }
};

/// The largest squared norm of each head.
template <class T>
void find_largest(const Array<T>& array, const double* centre, index_t heads, index_t rows,
                  double* largest, const Stream& stream) {
  const index_t parts = ceil_div(rows, kPartRows);
  const DeviceBuffer<double> of_parts(stream, heads * parts);
  launch_blocks<kThreads>(
      stream, heads * parts, sizeof(double) * kThreads,
      LargestPart<T>{array, centre, rows, static_cast<std::uint32_t>(parts), of_parts.data()});
  launch(stream, 1, heads, LargestOfParts{of_parts.data(), parts, largest});
}

/// A norm as a bound of the true one and of what type T makes of the row. Squares that underflow
/// are counted as what they may have lost.
template <class T>
double norm_bound(double square, index_t head_dim) {
  constexpr double kOne = std::numeric_limits<double>::epsilon();
  constexpr double kInType = std::numeric_limits<T>::epsilon();
  if (square == 0 && sizeof(T) == 4) return 0;
  const double lost = static_cast<double>(head_dim) * std::numeric_limits<double>::min();
  return std::sqrt(square + lost) * (1 + 2 * kInType + static_cast<double>(head_dim + 8) * kOne);
}

}  // namespace

template <class E>
LogitRange logit_range(View<const E, 4> query, View<const E, 4> key,
                       const AttentionOptions& options, const Stream& stream) {
  using T = Compute<E>;
  require_attention(kName, query, key, key);
  const auto [batch, heads, n, head_dim] = query.shape;
  require(std::holds_alternative<std::monostate>(options.mask), kName,
          "mask is given; expected none: on a GPU, is_causal alone hides keys");
  const index_t kv_heads = key.shape[1], all = batch * heads, all_kv = batch * kv_heads;
  const index_t seen = options.is_causal ? std::min(n, key.shape[2]) : key.shape[2];
  const index_t centres = all_kv * head_dim;
  LogitRange range{std::vector<double>(static_cast<std::size_t>(centres), 0.0),
                   std::vector<double>(static_cast<std::size_t>(all), 0.0)};
  if (all == 0) return range;

  const DeviceGuard guard(stream.device);
  const DeviceBuffer<double> result(stream, centres + all + all_kv);
  double* query_squares = result.data() + centres;
  double* key_squares = query_squares + all;
  const Array<T> keys = array_of(key, kv_heads);
  const index_t parts = ceil_div(seen, kPartRows);
  const DeviceBuffer<double> sums(stream, all_kv * parts * head_dim);
  const double factor = 1 / static_cast<double>(std::max<index_t>(seen, 1));  // sums stay finite
  launch_blocks<kThreads>(
      stream, all_kv * parts, sizeof(double) * kThreads,
      SumPart<T>{keys, seen, static_cast<std::uint32_t>(parts), factor, sums.data()});
  launch(stream, all_kv, head_dim, Mean<T>{sums.data(), parts, head_dim, result.data()});
  find_largest(array_of(query, heads), nullptr, all, n, query_squares, stream);
  find_largest(keys, result.data(), all_kv, seen, key_squares, stream);

  std::vector<double> found(static_cast<std::size_t>(result.size()));
  copy(stream, found.data(), result.data(), found.size() * sizeof(double));
  synchronize(stream);
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
  std::copy_n(found.begin(), centres, range.centre.begin());
  const double scale = std::abs(scale_of(options, head_dim));
  for (index_t flat = 0; flat < all; ++flat) {
    const index_t kv = flat / heads * kv_heads + flat % heads / (heads / kv_heads);
    const double a = norm_bound<T>(found[at(centres + flat)], head_dim) * scale;
    const double b = norm_bound<T>(found[at(centres + all + kv)], head_dim);
    const bool is_bound = std::isfinite(a) && std::isfinite(b);
    range.radius[at(flat)] = is_bound ? a * b * (1 + 4 * std::numeric_limits<double>::epsilon())
                                      : std::numeric_limits<double>::infinity();
  }
  return range;
}

#define CONVBASIS_INSTANTIATE(E)                                                               \
  template LogitRange logit_range(View<const E, 4>, View<const E, 4>, const AttentionOptions&, \
                                  const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
