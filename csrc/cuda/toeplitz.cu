#include "core/shape.h"
#include "cuda/direct.h"
#include "cuda/levels.h"
#include "cuda/toeplitz.h"

namespace convbasis::cuda {
namespace {

/// Rounds sums that were formed in float to what the caller keeps.
template <class T>
struct Round {
  Array<T> from, to;
  CONVBASIS_DEVICE void operator()(index_t head, index_t item) const {
    const auto [row, c] = position_of(item, to.channels);
    to.store(head, row, c, from.load(head, row, c));
  }
};

}  // namespace

template <class T>
void multiply_strips(const Strips<T>& strips, const Schedule& schedule, bool transpose,
                     const Array<T>& x, const Array<T>& y, index_t workspace, const Stream& stream,
                     std::span<const RoundingErrors> rounding) {
  multiply_diagonal(strips, schedule.diagonal, transpose, x, y, stream);
  for (const Level& level : schedule.levels)
    add_level(strips, level, transpose, x, y, workspace, stream,
              transpose ? std::span<const RoundingErrors>{} : rounding);
}

template <class E>
void conv_matmul(const BasisView<Compute<E>>& basis, View<const E, 4> x, View<E, 4> y,
                 bool transpose, const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "conv_matmul";
  require_basis(kName, basis);
  const auto [batch, heads, most, n] = basis.kernels.shape;
  const index_t columns = basis.num_columns, channels = x.shape[3];
  require_shape(kName, "x", x.shape, {batch, heads, transpose ? n : columns, channels},
                "to match the basis");
  require_shape(kName, "y", y.shape, {batch, heads, transpose ? columns : n, channels},
                "to match the basis");
  if (y.empty()) return;
  require_narrow(kName, batch * heads, most, n);

  const DeviceGuard guard(stream.device);
  const GpuModel model = model_for(element_of<E>);
  const Strips<T> strips = strips_of_basis(basis, {}, stream);
  const Schedule schedule =
      choose_schedule(strips.layouts, channels, static_cast<index_t>(sizeof(T)), model);
  const Array<T> from = array_of(x, heads), to = array_of(y, heads);
  DeviceBuffer<T> memory;
  Array<T> sums = to;
  if (to.element != Element::same) {
    memory = DeviceBuffer<T>(stream, y.size());
    sums = array_of(contiguous_view<T, 4>(memory.data(), y.shape), heads);
  }
  multiply_strips(strips, schedule, transpose, from, sums, model.workspace, stream);
  if (to.element != Element::same)
    launch(stream, batch * heads, y.shape[2] * channels, Round<T>{sums, to});
}

#define CONVBASIS_INSTANTIATE(E)                                                              \
  template void conv_matmul(const BasisView<Compute<E>>&, View<const E, 4>, View<E, 4>, bool, \
                            const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE
template void multiply_strips(const Strips<float>&, const Schedule&, bool, const Array<float>&,
                              const Array<float>&, index_t, const Stream&,
                              std::span<const RoundingErrors>);
template void multiply_strips(const Strips<double>&, const Schedule&, bool, const Array<double>&,
                              const Array<double>&, index_t, const Stream&,
                              std::span<const RoundingErrors>);

}  // namespace convbasis::cuda
