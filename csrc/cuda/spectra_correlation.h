#pragma once

#include "cuda/fft.h"
#include "cuda/level_plan.h"

namespace convbasis::cuda {

/// Sums of conj(piece) * block over channels, and over all pairs of one chunk that share a window.
/// Spectra are (frequencies, slots * width), sums (frequencies, windows).
template <class T>
struct SpectraCorrelation {
  const Slot *pieces, *blocks;
  const Tile* cells;          ///< outputs are blocks, inputs are pieces
  const std::int32_t* heads;  ///< where the cells of each head in the chunk begin, and their end
  const Complex<T>*of_pieces, *of_blocks;
  Complex<T>* sums;
  index_t windows, piece_columns, block_columns, frequencies, width, head_count;
};

/// Adds to the sums of windows that pieces of the chunk have. 8 FLOP a pair of slots, frequency and
/// channel; a spectrum is read once for each 32 slots that it meets, once of them from device
/// memory.
template <class T>
void correlate_spectra(const SpectraCorrelation<T>& correlation, const Stream& stream);

}  // namespace convbasis::cuda
