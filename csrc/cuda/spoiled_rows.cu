#include "cuda/single_rows.h"
#include "cuda/spoiled_rows.h"

namespace convbasis::cuda {
namespace {

template <class T>
struct StripLogits {
  StripTable<T> lower, upper;
  bool is_causal;
  [[nodiscard]] CONVBASIS_DEVICE index_t keys(index_t row) const {
    return is_causal && row + 1 < lower.columns ? row + 1 : lower.columns;
  }
  [[nodiscard]] CONVBASIS_DEVICE double logit(int head, index_t row, index_t column) const {
    return column <= row ? entry(lower, head, row, column)
                         : entry(upper, head, upper.rows - 1 - row, upper.rows - 1 - column);
  }
  [[nodiscard]] static CONVBASIS_DEVICE double entry(const StripTable<T>& strips, int head,
                                                     index_t row, index_t column) {
    const int strip = strips.strip_of(head, column);
    return strip < 0 ? 0.0 : static_cast<double>(strips.kernel(head, strip)[row - column]);
  }
};

}  // namespace

template <class T>
void attend_spoiled(const Triangles<T>& logits, const Array<T>& value, const std::int32_t* spoiled,
                    const Array<T>& out, const Array<T>& lse, double* exact_lse,
                    const Stream& stream) {
  const Strips<T>& lower = logits.front();
  attend_single_rows(static_cast<index_t>(lower.layouts.size()),
                     StripLogits<T>{lower.table, logits.back().table, logits.size() == 1}, value,
                     spoiled, out, lse, exact_lse, stream);
}

template void attend_spoiled(const Triangles<float>&, const Array<float>&, const std::int32_t*,
                             const Array<float>&, const Array<float>&, double*, const Stream&);
template void attend_spoiled(const Triangles<double>&, const Array<double>&, const std::int32_t*,
                             const Array<double>&, const Array<double>&, double*, const Stream&);

}  // namespace convbasis::cuda
