#include "core/buffer.h"
#include "cuda/buffer.h"
#include "cuda/spectra_correlation.h"

namespace convbasis::cuda {
namespace {

constexpr int kThreads = 64, kSide = 8, kEach = 4, kSlots = kSide * kEach, kDepth = 16;
constexpr int kStride = kSlots + 1;  // neighbouring rows begin in other banks
constexpr int kNumbers = (2 * kDepth > kSlots ? 2 * kDepth : kSlots) * kStride;

/// A thread block has all cells of one head at one frequency, so that nobody else adds to its sums.
/// Of kSlots pieces and as many blocks, a thread has kEach by kEach products; pairs that share a
/// window lie on a diagonal, which one thread sums up.
template <class T>
struct CorrelateCells {
  static constexpr std::size_t kSharedBytes =
      sizeof(Complex<T>) * kNumbers + sizeof(std::int32_t) * 3 * kSlots;
  SpectraCorrelation<T> p;

  struct Products {
    Complex<T> of[kEach][kEach];
  };
  /// What a block has in shared memory.
  struct Shared {
    CONVBASIS_DEVICE explicit Shared(unsigned char* memory)
        : pieces(reinterpret_cast<Complex<T>*>(memory)),
          blocks(pieces + kDepth * kStride),
          products(pieces),
          piece_blocks(reinterpret_cast<std::int32_t*>(pieces + kNumbers)),
          bases(piece_blocks + kSlots),
          block_blocks(bases + kSlots) {}
    Complex<T>*pieces, *blocks;                         // (kDepth, kStride)
    Complex<T>* products;                               // (kSlots, kStride), in their place
    std::int32_t *piece_blocks, *bases, *block_blocks;  // of slots; see Slot
  };

  CONVBASIS_DEVICE void operator()(Block<kThreads> block) const {
    const Shared shared(block.shared);
    const index_t f = block.index % p.frequencies;
    const int head = static_cast<int>(block.index / p.frequencies);
    for (int i = p.heads[head]; i < p.heads[head + 1]; ++i) {
      const Tile cell = p.cells[i];
      for (int piece = 0; piece < cell.inputs; piece += kSlots) {
        const int pieces = cell.inputs - piece < kSlots ? cell.inputs - piece : kSlots;
        const int earliest = p.pieces[cell.input + piece].block;
        for (int first = 0; first < cell.outputs; first += kSlots) {
          const int blocks = cell.outputs - first < kSlots ? cell.outputs - first : kSlots;
          if (p.blocks[cell.output + first + blocks - 1].block > earliest)
            add_tile(block, f, cell.input + piece, pieces, cell.output + first, blocks, shared);
        }
      }
    }
  }

  CONVBASIS_DEVICE void add_tile(Block<kThreads>& block, index_t f, int piece, int pieces,
                                 int first, int blocks, const Shared& shared) const {
    PerThread<Products, kThreads> products;
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int i = 0; i < kEach; ++i) CONVBASIS_UNROLL
      for (int j = 0; j < kEach; ++j) products[t].of[i][j] = {T(0), T(0)};
      if (t >= kSlots) return;
      const Slot of_piece = p.pieces[piece + (t < pieces ? t : 0)];
      shared.piece_blocks[t] = of_piece.block;
      shared.bases[t] = of_piece.base;
      shared.block_blocks[t] = p.blocks[first + (t < blocks ? t : 0)].block;
    });
    const Complex<T>* left = p.of_pieces + f * p.piece_columns + piece * p.width;
    const Complex<T>* right = p.of_blocks + f * p.block_columns + first * p.width;
    const int width = static_cast<int>(p.width);
    for (int channel = 0; channel < width; channel += kDepth) {
      block.each(kDepth * kSlots, [&](int i) {
        const int depth = i % kDepth, slot = i / kDepth, c = channel + depth;
        const Complex<T> zero{T(0), T(0)};
        shared.pieces[depth * kStride + slot] =
            c < width && slot < pieces ? left[slot * p.width + c] : zero;
        shared.blocks[depth * kStride + slot] =
            c < width && slot < blocks ? right[slot * p.width + c] : zero;
      });
      block.each(kThreads, [&](int t) { multiply(t, shared, products[t]); });
    }
    block.each(kThreads, [&](int t) {
      CONVBASIS_UNROLL
      for (int i = 0; i < kEach; ++i) CONVBASIS_UNROLL
      for (int j = 0; j < kEach; ++j)
        shared.products[(t % kSide + i * kSide) * kStride + t / kSide + j * kSide] =
            products[t].of[i][j];
    });
    Complex<T>* sums = p.sums + f * p.windows;
    block.each(2 * kSlots - 1, [&](int i) {
      const int ahead = i - kSlots + 1;  // of the block's place over the piece's
      add_diagonal(shared, pieces, blocks, ahead, sums);
    });
  }

  static CONVBASIS_DEVICE void multiply(int t, const Shared& shared, Products& products) {
    const Complex<T>* left = shared.pieces + t % kSide;
    const Complex<T>* right = shared.blocks + t / kSide;
    for (int depth = 0; depth < kDepth; ++depth, left += kStride, right += kStride) {
      Complex<T> values[kEach];
      CONVBASIS_UNROLL
      for (int j = 0; j < kEach; ++j) values[j] = right[j * kSide];
      CONVBASIS_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const Complex<T> value = left[i * kSide];
        CONVBASIS_UNROLL
        for (int j = 0; j < kEach; ++j) {
          Complex<T>& sum = products.of[i][j];
          sum.re += value.re * values[j].re + value.im * values[j].im;
          sum.im += value.re * values[j].im - value.im * values[j].re;
        }
      }
    }
  }

  /// Neighbours on a diagonal share a window as long as they are of one strip, and no other
  /// diagonal of these slots has that window.
  static CONVBASIS_DEVICE void add_diagonal(const Shared& shared, int pieces, int blocks, int ahead,
                                            Complex<T>* sums) {
    Complex<T> sum{T(0), T(0)};
    int window = -1;
    const int end = pieces < blocks - ahead ? pieces : blocks - ahead;
    for (int i = ahead < 0 ? -ahead : 0; i < end; ++i) {
      const int to = shared.block_blocks[i + ahead];
      if (to <= shared.piece_blocks[i]) continue;
      if (shared.bases[i] + to != window) {
        if (window >= 0) add(sum, sums[window]);
        window = shared.bases[i] + to;
        sum = {T(0), T(0)};
      }
      add(shared.products[i * kStride + i + ahead], sum);
    }
    if (window >= 0) add(sum, sums[window]);
  }
  static CONVBASIS_DEVICE void add(const Complex<T>& from, Complex<T>& to) {
    to.re += from.re;
    to.im += from.im;
  }
};

}  // namespace

template <class T>
void correlate_spectra(const SpectraCorrelation<T>& correlation, const Stream& stream) {
  using Kernel = CorrelateCells<T>;
  launch_blocks<kThreads>(stream, correlation.head_count * correlation.frequencies,
                          Kernel::kSharedBytes, Kernel{correlation});
}

template void correlate_spectra(const SpectraCorrelation<float>&, const Stream&);
template void correlate_spectra(const SpectraCorrelation<double>&, const Stream&);

}  // namespace convbasis::cuda
