#include "core/buffer.h"
#include "core/shape.h"
#include "cuda/normalize.h"
#include "cuda/window_sums.h"

// Row i of a strip of columns [begin, end) sums lags i - end + 1 to i - begin: a window of the
// strip's width.

namespace convbasis::cuda {
namespace {

/// The lags of one strip after another.
template <class T>
struct StripLags {
  StripTable<T> strips;
  [[nodiscard]] CONVBASIS_DEVICE Numbers<T> of(index_t index) const {
    const int head = static_cast<int>(index / strips.most);
    const int strip = static_cast<int>(index % strips.most);
    return {strips.kernel(head, strip), strips.lags(head, strip)};
  }
};

template <class T>
struct SumTileOfRows {
  StripTable<T> strips;
  const double* totals;
  index_t runs;
  double* sums;
  CONVBASIS_DEVICE void operator()(Block<kWindowThreads> block) const {
    const int head = static_cast<int>(block.index / runs);
    const index_t row = block.index % runs * kRun;
    WindowSums windows(block);
    for (int strip = 0; strip < strips.counts[head]; ++strip) {
      const index_t begin = strips.begin(head, strip), end = strips.end(head, strip);
      if (begin >= row + kRun) break;
      const Numbers<T> numbers{strips.kernel(head, strip), strips.lags(head, strip)};
      windows.add(block, numbers, totals + (index_t{head} * strips.most + strip) * runs,
                  row - end + 1, end - begin);
    }
    windows.each(block, [&](int i, double sum) {
      if (row + i < strips.rows) sums[head * strips.rows + row + i] = sum;
    });
  }
};

template <class T>
struct CopySums {
  const double* from;
  index_t heads, rows;
  View<T, 3> to;
  CONVBASIS_DEVICE void operator()(index_t head, index_t row) const {
    to.data[head / heads * to.strides[0] + head % heads * to.strides[1] + row * to.strides[2]] =
        static_cast<T>(from[head * rows + row]);
  }
};

}  // namespace

template <class T>
void sum_rows(const Strips<T>& strips, double* sums, const Stream& stream) {
  const StripTable<T>& table = strips.table;
  const auto all = static_cast<index_t>(strips.layouts.size());
  const index_t runs = ceil_div(table.rows, kRun);
  const DeviceBuffer<double> totals(stream, all * table.most * runs);
  using Totals = RunTotals<StripLags<T>>;
  launch_blocks<kWindowThreads>(stream, totals.size(), Totals::kSharedBytes,
                                Totals{{table}, runs, totals.data()});
  launch_blocks<kWindowThreads>(stream, all * runs, WindowSums::kSharedBytes,
                                SumTileOfRows<T>{table, totals.data(), runs, sums});
}

template <class T>
void row_sums(const BasisView<T>& basis, View<T, 3> sums, const Stream& stream) {
  constexpr const char* kName = "row_sums";
  require_basis(kName, basis);
  const auto [batch, heads, most, n] = basis.kernels.shape;
  require_shape(kName, "sums", sums.shape, {batch, heads, n}, "to match the basis");
  if (sums.empty()) return;
  require_narrow(kName, batch * heads, most, n);
  const DeviceGuard guard(stream.device);
  const Strips<T> strips = strips_of_basis(basis, {}, stream);
  const DeviceBuffer<double> exact(stream, sums.size());
  sum_rows(strips, exact.data(), stream);
  launch(stream, batch * heads, n, CopySums<T>{exact.data(), heads, n, sums});
}

#define CONVBASIS_INSTANTIATE(T)                                    \
  template void sum_rows(const Strips<T>&, double*, const Stream&); \
  template void row_sums(const BasisView<T>&, View<T, 3>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
