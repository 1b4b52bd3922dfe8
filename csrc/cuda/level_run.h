#pragma once

#include <span>

#include "cuda/fft.h"
#include "cuda/products.h"
#include "cuda/rounding.h"

// Output b of a level gets, from the piece of block b - l, lags (l - 1) L + 1 to (l + 1) L - 1.
// With u = L + s - q for row s of the output and row q of the piece, the window is w[u] = kernel[(l
// - 1) L
// + u], u < 2 L, and a circular product of length 2 L is right in its upper half: the piece goes to
// rows [0, L), the output comes from rows [L, 2 L). The transpose is the same with conjugated
// spectra and the halves exchanged.

namespace convbasis::cuda {

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

/// One plan of a level: the spectra of its windows, and the products of its chunks with them.
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

  /// fill(slots, offset, columns, to): (length, columns) numbers of the chunk's inputs, `columns`
  /// of them `width` a slot, their rows from row `offset` on. add(slots, offset, columns, from):
  /// what to do with the results, whose rows begin at row `offset`.
  template <class Fill, class Add>
  void run(const Chunk& chunk, index_t width, const Fill& fill, const Add& add) const {
    const index_t block = plan_.level.block, below = transpose_ ? block : 0;
    const index_t in = chunk.inputs * width, out = chunk.outputs * width;
    DeviceBuffer<Complex<T>> spectra(stream_, frequencies() * in);
    {
      const DeviceBuffer<T> padded(stream_, length_ * in);
      fill(inputs_.data() + chunk.input, below, in, padded.data());
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
    add(outputs_.data() + chunk.output, block - below, out, results.data());
  }
  /// What results are to be multiplied by.
  [[nodiscard]] T factor() const { return T(1) / static_cast<T>(length_); }

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

}  // namespace convbasis::cuda
