#include "cuda/gather.h"
#include "cuda/level_run.h"
#include "cuda/levels.h"

namespace convbasis::cuda {
namespace {

template <class T>
struct AddOutputs {
  Array<T> y;
  const Slot* slots;
  index_t block, offset, channel;
  std::uint32_t width;
  index_t columns;
  const T* from;
  T factor;
  CONVBASIS_DEVICE void operator()(index_t q, index_t column) const {
    const auto slot_index = static_cast<std::uint32_t>(column) / width;
    const auto c = static_cast<std::uint32_t>(column) % width;
    const Slot slot = slots[slot_index];
    const index_t row = slot.block * block + q;
    if (row < slot.first || row >= slot.last) return;
    const T sum = y.load(slot.head, row, channel + c);
    y.store(slot.head, row, channel + c, sum + factor * from[(offset + q) * columns + column]);
  }
};

}  // namespace

template <class T>
void add_level(const Strips<T>& strips, const Level& level, bool transpose, const Array<T>& x,
               const Array<T>& y, index_t workspace, const Stream& stream,
               std::span<const RoundingErrors> rounding) {
  for (const LevelPlan& plan : plan_level(strips.layouts, level, transpose, x.channels,
                                          static_cast<index_t>(sizeof(T)), workspace)) {
    const LevelRun<T> run(strips, plan, transpose, stream, rounding);
    const index_t block = level.block;
    for (const Chunk& chunk : plan.chunks) {
      for (index_t channel = 0; channel < x.channels; channel += plan.width) {
        const index_t width = std::min(plan.width, x.channels - channel);
        const auto narrow_width = static_cast<std::uint32_t>(width);
        run.run(
            chunk, width,
            [&](const Slot* slots, index_t offset, index_t columns, T* to) {
              launch(stream, 2 * block, columns,
                     GatherInputs<T>{x, slots, block, offset, channel, narrow_width, columns, to});
            },
            [&](const Slot* slots, index_t offset, index_t columns, const T* from) {
              launch(stream, block, columns,
                     AddOutputs<T>{y, slots, block, offset, channel, narrow_width, columns, from,
                                   run.factor()});
            });
      }
    }
  }
}

template <class T>
void add_level_rounding(const Strips<T>& strips, const Level& level, index_t workspace,
                        std::span<const RoundingErrors> rounding, const Stream& stream) {
  for (const LevelPlan& plan :
       plan_level(strips.layouts, level, false, 1, static_cast<index_t>(sizeof(T)), workspace)) {
    const DeviceBuffer<Window> windows = upload<Window>(stream, plan.windows);
    const DeviceBuffer<Slot> inputs = upload<Slot>(stream, plan.inputs);
    const DeviceBuffer<Slot> outputs = upload<Slot>(stream, plan.outputs);
    const DeviceBuffer<Tile> tiles = upload<Tile>(stream, plan.tiles);
    for (const RoundingErrors& errors : rounding)
      add_rounding(strips, plan, windows.data(), inputs.data(), outputs.data(), tiles.data(),
                   errors, stream);
  }
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template void add_level(const Strips<T>&, const Level&, bool, const Array<T>&, const Array<T>&, \
                          index_t, const Stream&, std::span<const RoundingErrors>);               \
  template void add_level_rounding(const Strips<T>&, const Level&, index_t,                       \
                                   std::span<const RoundingErrors>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
