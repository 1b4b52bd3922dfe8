#pragma once

#include "cuda/fft.h"
#include "cuda/level_plan.h"

namespace convbasis::cuda {

/// Sums of products of spectra in one chunk. Spectra are (frequencies, slots * width), weights are
/// (frequencies, windows).
template <class T>
struct SpectraProduct {
  const Slot *inputs, *outputs;
  const Tile* tiles;
  const Complex<T>*weights, *in;
  Complex<T>* out;
  index_t windows, in_columns, out_columns, frequencies, width, tile_count;
  bool transpose;  ///< weights are conjugated, and outputs are pieces
};

/// out = sum of weights * in, frequency by frequency, over the inputs of each tile. Every output is
/// written. 8 FLOP a pair of slots, frequency and channel; spectra of inputs are read once a tile.
template <class T>
void multiply_spectra(const SpectraProduct<T>& product, const Stream& stream);

}  // namespace convbasis::cuda
