#include "cpu/lowrank_columns.h"

#include <algorithm>
#include <cmath>

#include "convbasis/attention.h"
#include "cpu/key_windows.h"
#include "cpu/rows.h"

namespace convbasis {
namespace {

/// The listed rows of a matrix, as an array of one head.
template <class T>
class Gathered {
 public:
  Gathered(const View<const T, 2>& matrix, std::span<const index_t> rows)
      : count_(static_cast<index_t>(rows.size())),
        columns_(matrix.shape[1]),
        numbers_(count_ * columns_) {
    for (index_t r = 0; r < count_; ++r)
      for (index_t c = 0; c < columns_; ++c)
        numbers_[r * columns_ + c] = matrix(rows[static_cast<std::size_t>(r)], c);
  }
  void subtract(std::span<const double> centre) {
    for (index_t r = 0; r < count_; ++r)
      for (index_t c = 0; c < columns_; ++c) {
        T& number = numbers_[r * columns_ + c];
        number = static_cast<T>(static_cast<double>(number) - centre[static_cast<std::size_t>(c)]);
      }
  }
  [[nodiscard]] View<const T, 4> view() const {
    return contiguous_view<const T, 4>(numbers_.data(), {1, 1, count_, columns_});
  }

 private:
  index_t count_, columns_;
  Buffer<T> numbers_;
};

}  // namespace

template <class T>
void join_exact_columns(const View<const T, 2>& query, const View<const T, 2>& key,
                        const View<const T, 2>& value, std::span<const index_t> columns,
                        std::span<const double> centre, double scale,
                        const AttentionOptions& options, const View<T, 2>& out, double* log_sums,
                        const Exec& exec) {
  const index_t channels = value.shape[1];
  for (const KeyWindows& part :
       key_windows(options.mask, options.is_causal, query.shape[0], columns)) {
    const Gathered<T> queries(query, part.rows), values(value, part.keys);
    Gathered<T> keys(key, part.keys);
    keys.subtract(centre);
    const index_t count = static_cast<index_t>(part.rows.size());
    Buffer<T> found(count * channels), lse(count);
    exact_attention<T>(queries.view(), keys.view(), values.view(),
                       contiguous_view<T, 4>(found.data(), {1, 1, count, channels}),
                       contiguous_view<T, 3>(lse.data(), {1, 1, count}),
                       {scale, false, masks::RowWindow{part.start, part.stop}}, {}, exec);
    for_each_row(exec, count, [&](index_t r) {
      const index_t row = part.rows[static_cast<std::size_t>(r)];
      const double more = static_cast<double>(lse[r]), before = log_sums[row];
      const double top = std::max(before, more);
      const double kept = std::exp(before - top), added = std::exp(more - top);
      const T keep = static_cast<T>(kept / (kept + added));
      const T add = static_cast<T>(added / (kept + added));
      for (index_t c = 0; c < channels; ++c)
        out(row, c) = (keep > T(0) ? keep * out(row, c) : T(0)) + add * found[r * channels + c];
      log_sums[row] = top + std::log(kept + added);
    });
  }
}

template void join_exact_columns(const View<const float, 2>&, const View<const float, 2>&,
                                 const View<const float, 2>&, std::span<const index_t>,
                                 std::span<const double>, double, const AttentionOptions&,
                                 const View<float, 2>&, double*, const Exec&);
template void join_exact_columns(const View<const double, 2>&, const View<const double, 2>&,
                                 const View<const double, 2>&, std::span<const index_t>,
                                 std::span<const double>, double, const AttentionOptions&,
                                 const View<double, 2>&, double*, const Exec&);

}  // namespace convbasis
