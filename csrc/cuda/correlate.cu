#include "core/buffer.h"
#include "cuda/correlate.h"
#include "cuda/direct_correlation.h"
#include "cuda/fft.h"
#include "cuda/gather.h"
#include "cuda/spectra_correlation.h"

// With the window w of levels.cu, the gradient by w[u] is the sum over rows q of a piece of x[q]
// y[u + q - L]. With the piece in rows [0, L) and the block in rows [L, 2 L) of a circular product
// of length 2 L, its spectrum is conj(piece) * block, and 1 <= u < 2 L are right.

namespace convbasis::cuda {
namespace {

/// Windows [first, first + count) of a plan are those of one strip, block lags 1 to count.
struct WindowRun {
  std::int32_t head, strip, first, count;
};

/// Neighbouring windows share lags: a lag is in the first half of one and the second half of
/// another.
template <class T>
struct AddWindows {
  StripTable<T> strips;
  const WindowRun* runs;
  const T* values;  // (2 * block, windows)
  std::int32_t block;
  index_t windows;
  T factor;
  T* out;
  CONVBASIS_DEVICE void operator()(index_t run_index, index_t lag) const {
    const WindowRun run = runs[run_index];
    if (lag >= strips.lags(run.head, run.strip)) return;
    const int before = static_cast<int>(lag) / block, u = static_cast<int>(lag) % block;
    if (before > run.count) return;
    T sum = 0;
    if (before < run.count) sum += values[u * windows + run.first + before];
    if (before > 0) sum += values[(block + u) * windows + run.first + before - 1];
    out[(index_t{run.head} * strips.most + run.strip) * strips.rows + lag] += factor * sum;
  }
};

template <class T>
class LevelCorrelation {
 public:
  LevelCorrelation(const LevelPlan& plan, const Stream& stream)
      : plan_(plan),
        stream_(stream),
        length_(2 * plan.level.block),
        windows_(static_cast<index_t>(plan.windows.size())),
        pieces_(upload<Slot>(stream, plan.inputs)),
        blocks_(upload<Slot>(stream, plan.outputs)),
        cells_(upload<Tile>(stream, plan.cells)),
        sums_(stream, frequencies() * windows_) {
    fill_zero(stream, sums_.data(), static_cast<std::size_t>(sums_.size()) * sizeof(Complex<T>));
  }

  void run(const Chunk& chunk, const Array<T>& x, const Array<T>& y) const {
    std::vector<std::int32_t> heads;
    for (index_t i = 0; i < chunk.cells; ++i)
      if (i == 0 || head_of(chunk, i) != head_of(chunk, i - 1))
        heads.push_back(static_cast<std::int32_t>(i));
    const auto count = static_cast<index_t>(heads.size());
    heads.push_back(static_cast<std::int32_t>(chunk.cells));
    const DeviceBuffer<std::int32_t> on_device = upload<std::int32_t>(stream_, heads);
    for (index_t channel = 0; channel < x.channels; channel += plan_.width) {
      const index_t width = std::min(plan_.width, x.channels - channel);
      const DeviceBuffer<Complex<T>> of_pieces =
          spectra(x, pieces_.data() + chunk.input, chunk.inputs, 0, channel, width);
      const DeviceBuffer<Complex<T>> of_blocks = spectra(
          y, blocks_.data() + chunk.output, chunk.outputs, plan_.level.block, channel, width);
      correlate_spectra<T>(
          {pieces_.data() + chunk.input, blocks_.data() + chunk.output, cells_.data() + chunk.cell,
           on_device.data(), of_pieces.data(), of_blocks.data(), sums_.data(), windows_,
           chunk.inputs * width, chunk.outputs * width, frequencies(), width, count},
          stream_);
    }
  }

  void add_to(const StripTable<T>& strips, T* out) const {
    std::vector<WindowRun> runs;
    for (std::size_t i = 0; i < plan_.windows.size(); ++i) {
      const Window& window = plan_.windows[i];
      if (window.first == 0)  // block lag 1
        runs.push_back({window.head, window.strip, static_cast<std::int32_t>(i), 0});
      ++runs.back().count;
    }
    const DeviceBuffer<WindowRun> on_device = upload<WindowRun>(stream_, runs);
    const DeviceBuffer<T> values(stream_, length_ * windows_);
    transform_back(stream_, length_, windows_, sums_.data(), values.data());
    launch(stream_, on_device.size(), strips.rows,
           AddWindows<T>{strips, on_device.data(), values.data(),
                         static_cast<std::int32_t>(plan_.level.block), windows_,
                         T(1) / static_cast<T>(length_), out});
  }

 private:
  [[nodiscard]] index_t frequencies() const { return plan_.level.block + 1; }
  [[nodiscard]] std::int32_t head_of(const Chunk& chunk, index_t cell) const {
    const Tile& tile = plan_.cells[static_cast<std::size_t>(chunk.cell + cell)];
    return plan_.inputs[static_cast<std::size_t>(chunk.input + tile.input)].head;
  }
  [[nodiscard]] DeviceBuffer<Complex<T>> spectra(const Array<T>& from, const Slot* slots,
                                                 index_t count, index_t offset, index_t channel,
                                                 index_t width) const {
    const index_t columns = count * width;
    const DeviceBuffer<T> padded(stream_, length_ * columns);
    DeviceBuffer<Complex<T>> result(stream_, frequencies() * columns);
    launch(stream_, length_, columns,
           GatherInputs<T>{from, slots, plan_.level.block, offset, channel,
                           static_cast<std::uint32_t>(width), columns, padded.data()});
    transform(stream_, length_, columns, padded.data(), result.data());
    return result;
  }

  const LevelPlan& plan_;
  Stream stream_;
  index_t length_, windows_;
  DeviceBuffer<Slot> pieces_, blocks_;
  DeviceBuffer<Tile> cells_;
  DeviceBuffer<Complex<T>> sums_;
};

}  // namespace

template <class T>
void correlate_strips(const Strips<T>& strips, const Schedule& schedule, const Array<T>& x,
                      const Array<T>& y, T* out, index_t workspace, const Stream& stream) {
  correlate_diagonal(strips, schedule.diagonal, x, y, out, stream);
  for (const Level& level : schedule.levels) {
    for (const LevelPlan& plan : plan_level(strips.layouts, level, false, x.channels,
                                            static_cast<index_t>(sizeof(T)), workspace)) {
      const LevelCorrelation<T> correlation(plan, stream);
      for (const Chunk& chunk : plan.chunks) correlation.run(chunk, x, y);
      correlation.add_to(strips.table, out);
    }
  }
}

#define CONVBASIS_INSTANTIATE(T)                                                     \
  template void correlate_strips(const Strips<T>&, const Schedule&, const Array<T>&, \
                                 const Array<T>&, T*, index_t, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
