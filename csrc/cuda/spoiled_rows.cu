#include "cuda/single_rows.h"
#include "cuda/spoiled_rows.h"

namespace convbasis::cuda {
namespace {

template <class T>
struct StripLogits {
  StripTable<T> strips;
  [[nodiscard]] CONVBASIS_DEVICE index_t keys(index_t row) const {
    return row + 1 < strips.columns ? row + 1 : strips.columns;
  }
  [[nodiscard]] CONVBASIS_DEVICE double logit(int head, index_t row, index_t column) const {
    const int strip = strips.strip_of(head, column);
    return strip < 0 ? 0.0 : static_cast<double>(strips.kernel(head, strip)[row - column]);
  }
};

}  // namespace

template <class T>
void attend_spoiled(const Strips<T>& logits, const Array<T>& value, const std::int32_t* spoiled,
                    const Array<T>& out, const Array<T>& lse, double* exact_lse,
                    const Stream& stream) {
  attend_single_rows(static_cast<index_t>(logits.layouts.size()), StripLogits<T>{logits.table},
                     value, spoiled, out, lse, exact_lse, stream);
}

template void attend_spoiled(const Strips<float>&, const Array<float>&, const std::int32_t*,
                             const Array<float>&, const Array<float>&, double*, const Stream&);
template void attend_spoiled(const Strips<double>&, const Array<double>&, const std::int32_t*,
                             const Array<double>&, const Array<double>&, double*, const Stream&);

}  // namespace convbasis::cuda
