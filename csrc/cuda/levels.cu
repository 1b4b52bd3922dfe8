#include "cuda/fft.h"
#include "cuda/gather.h"
#include "cuda/levels.h"
#include "cuda/products.h"

// Output b of a level gets, from the piece of block b - l, lags (l - 1) L + 1 to (l + 1) L - 1.
// With u = L + s - q for row s of the output and row q of the piece, the window is w[u] = kernel[(l
// - 1) L
// + u], u < 2 L, and a circular product of length 2 L is right in its upper half: the piece goes to
// rows [0, L), the output comes from rows [L, 2 L). The transpose is the same with conjugated
// spectra and the halves exchanged.

namespace convbasis::cuda {
namespace {

template <class T>
struct GatherWindows {
  StripTable<T> strips;
  const Window* windows;
  index_t count;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t u, index_t i) const {
    const Window window = windows[i];
    to[u * count + i] =
        u < window.limit ? strips.kernel(window.head, window.strip)[window.first + u] : T(0);
  }
};

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

template <class T>
class LevelRun {
 public:
  LevelRun(const Strips<T>& strips, const LevelPlan& plan, bool transpose, const Stream& stream,
           std::span<const RoundingErrors> rounding)
      : plan_(plan),
        transpose_(transpose),
        stream_(stream),
        length_(2 * plan.level.block),
        inputs_(upload<Slot>(stream, plan.inputs)),
        outputs_(upload<Slot>(stream, plan.outputs)),
        tiles_(upload<Tile>(stream, plan.tiles)) {
    const DeviceBuffer<Window> windows = upload<Window>(stream, plan.windows);
    const DeviceBuffer<T> values(stream, length_ * windows.size());
    launch(stream, length_, windows.size(),
           GatherWindows<T>{strips.table, windows.data(), windows.size(), values.data()});
    weights_ = DeviceBuffer<Complex<T>>(stream, frequencies() * windows.size());
    transform(stream, length_, windows.size(), values.data(), weights_.data());
    for (const RoundingErrors& errors : rounding)
      add_rounding(strips, plan, windows.data(), inputs_.data(), outputs_.data(), tiles_.data(),
                   errors, stream);
  }

  void run(const Chunk& chunk, index_t channel, index_t width, const Array<T>& x,
           const Array<T>& y) const {
    const index_t block = plan_.level.block, below = transpose_ ? block : 0;
    const index_t in = chunk.inputs * width, out = chunk.outputs * width;
    const auto narrow_width = static_cast<std::uint32_t>(width);
    DeviceBuffer<Complex<T>> spectra(stream_, frequencies() * in);
    {
      const DeviceBuffer<T> padded(stream_, length_ * in);
      launch(stream_, length_, in,
             GatherInputs<T>{x, inputs_.data() + chunk.input, block, below, channel, narrow_width,
                             in, padded.data()});
      transform(stream_, length_, in, padded.data(), spectra.data());
    }
    const DeviceBuffer<Complex<T>> sums(stream_, frequencies() * out);
    multiply_spectra<T>(
        {inputs_.data() + chunk.input, outputs_.data() + chunk.output, tiles_.data() + chunk.tile,
         weights_.data(), spectra.data(), sums.data(), static_cast<index_t>(plan_.windows.size()),
         in, out, frequencies(), width, chunk.tiles, transpose_},
        stream_);
    spectra = {};
    const DeviceBuffer<T> results(stream_, length_ * out);
    transform_back(stream_, length_, out, sums.data(), results.data());
    launch(stream_, block, out,
           AddOutputs<T>{y, outputs_.data() + chunk.output, block, block - below, channel,
                         narrow_width, out, results.data(), T(1) / static_cast<T>(length_)});
  }

 private:
  [[nodiscard]] index_t frequencies() const { return plan_.level.block + 1; }

  const LevelPlan& plan_;
  bool transpose_;
  Stream stream_;
  index_t length_;
  DeviceBuffer<Slot> inputs_, outputs_;
  DeviceBuffer<Tile> tiles_;
  DeviceBuffer<Complex<T>> weights_;
};

}  // namespace

template <class T>
void add_level(const Strips<T>& strips, const Level& level, bool transpose, const Array<T>& x,
               const Array<T>& y, index_t workspace, const Stream& stream,
               std::span<const RoundingErrors> rounding) {
  for (const LevelPlan& plan : plan_level(strips.layouts, level, transpose, x.channels,
                                          static_cast<index_t>(sizeof(T)), workspace)) {
    const LevelRun<T> run(strips, plan, transpose, stream, rounding);
    for (const Chunk& chunk : plan.chunks)
      for (index_t channel = 0; channel < x.channels; channel += plan.width)
        run.run(chunk, channel, std::min(plan.width, x.channels - channel), x, y);
  }
}

#define CONVBASIS_INSTANTIATE(T)                                                                  \
  template void add_level(const Strips<T>&, const Level&, bool, const Array<T>&, const Array<T>&, \
                          index_t, const Stream&, std::span<const RoundingErrors>);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
