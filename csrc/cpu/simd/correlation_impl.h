// Included by kernels_impl.h: correlations of rows of channels, the adjoint of the products with
// kernels, directly inside diagonal blocks and frequency by frequency between blocks. As many sums
// stay in registers as a vector has lanes, and are folded into one vector at the end.

namespace convbasis {
namespace {

/// The first `count` lanes of v are added to out.
template <class T>
XSIMD_INLINE void add_to(T* out, const Vec<T>& v, index_t count) {
  if (count >= kLanes<T>) {
    store(out, load(out) + v);
  } else {
    store_partial(out, load_partial(out, count, T(0)) + v, count);
  }
}

/// sums[o] += x[j] . y[first + j + o] over columns j in [begin, end), one vector of channels. Each
/// row of y that is loaded serves two columns.
template <class T>
XSIMD_INLINE void add_products(Vec<T> (&sums)[kLanes<T>], index_t begin, index_t end, index_t first,
                               Rows<const T> x, Rows<const T> y, index_t channel) {
  constexpr index_t kLast = kLanes<T> - 1;
  index_t j = begin;
  for (; j + 2 <= end; j += 2) {
    const Vec<T> early = load(x.row(j) + channel), late = load(x.row(j + 1) + channel);
    const T* from = y.row(first + j) + channel;
    Vec<T> row = load(from);
    sums[0] = xsimd::fma(early, row, sums[0]);
    for (index_t o = 1; o <= kLast; ++o) {
      row = load(from + o * y.stride);
      sums[o] = xsimd::fma(early, row, sums[o]);
      sums[o - 1] = xsimd::fma(late, row, sums[o - 1]);
    }
    sums[kLast] = xsimd::fma(late, load(from + (kLast + 1) * y.stride), sums[kLast]);
  }
  for (; j < end; ++j) {
    const Vec<T> value = load(x.row(j) + channel);
    const T* from = y.row(first + j) + channel;
    for (index_t o = 0; o <= kLast; ++o)
      sums[o] = xsimd::fma(value, load(from + o * y.stride), sums[o]);
  }
}

template <class T>
void correlate_directly(index_t begin, index_t end, index_t stop, Rows<const T> x, Rows<const T> y,
                        index_t channels, T* out) {
  const index_t lags = stop - begin;
  for (index_t channel = 0; channel < channels; channel += kLanes<T>) {
    for (index_t first = 0; first < lags; first += kLanes<T>) {
      Vec<T> sums[kLanes<T>];
      for (Vec<T>& sum : sums) sum = Vec<T>(T(0));
      // Columns before `whole` have all lags first .. first + lanes - 1 inside the block.
      const index_t whole = stop - first - kLanes<T> + 1;
      const index_t edge = whole < begin ? begin : whole < end ? whole : end;
      add_products<T>(sums, begin, edge, first, x, y, channel);
      for (index_t j = edge; j < end && j + first < stop; ++j) {
        const Vec<T> value = load(x.row(j) + channel);
        for (index_t o = 0; o < kLanes<T>; ++o)
          if (j + first + o < stop)
            sums[o] = xsimd::fma(value, load(y.row(j + first + o) + channel), sums[o]);
      }
      add_to<T>(out + first, sum_each<T>(sums), lags - first);
    }
  }
}

/// Products of spectra, summed over the pieces of a strip and over channels.
template <class T>
struct Correlations {
  using V = Vec<T>;
  static constexpr index_t kPoint = 2 * kLanes<T>;
  static constexpr index_t kLags = kLanes<T> / 2;  // at a time: real and imaginary parts of each

  static void copy(const T* from, T* to) {
    store(to, load(from));
    store(to + kLanes<T>, load(from + kLanes<T>));
  }

  /// Value f of every spectrum that `from` lists, one frequency after the other; zeros for -1.
  static void pack(const T* spectra, index_t stride, const index_t* from, index_t items,
                   index_t count, T* packed) {
    for (index_t s = 0; s < items; ++s) {
      for (index_t f = 0; f < count; ++f) {
        T* to = packed + (f * items + s) * kPoint;
        if (from[s] >= 0) {
          copy(spectra + from[s] * stride + f * kPoint, to);
        } else {
          store(to, V(T(0)));
          store(to + kLanes<T>, V(T(0)));
        }
      }
    }
  }

  /// re, im += conj(x) * y of kLags neighbouring blocks y.
  XSIMD_INLINE static void add(V (&sums)[kLanes<T>], const T* x, const T* y) {
    const V xr = load(x), xi = load(x + kLanes<T>);
    for (index_t o = 0; o < kLags; ++o) {
      const V yr = load(y + o * kPoint), yi = load(y + o * kPoint + kLanes<T>);
      V& re = sums[o];
      V& im = sums[kLags + o];
      re = xsimd::fma(xr, yr, re);
      re = xsimd::fma(xi, yi, re);
      im = xsimd::fma(xr, yi, im);
      im = xsimd::fnma(xi, yr, im);
    }
  }

  static void correlate_one(const FrequencyCorrelation<T>& p, const T* pieces, const T* blocks,
                            T* re, T* im) {
    for (index_t r = 0; r < p.strips; ++r) {
      for (index_t lag = 1; lag <= p.lags[r]; lag += kLags) {
        V sums[kLanes<T>];
        for (V& sum : sums) sum = V(T(0));
        for (index_t s = p.first[r]; s < p.first[r + 1]; ++s)
          if (p.reach[s] >= lag)
            add(sums, pieces + s * kPoint, blocks + (p.position[s] + lag) * kPoint);
        alignas(64) T both[kLanes<T>];
        sum_each<T>(sums).store_aligned(both);
        const index_t at = p.window[r] + lag - 1;
        for (index_t o = 0; o < kLags; ++o) {
          re[at + o] += both[o];
          im[at + o] += both[kLags + o];
        }
      }
    }
  }

  static void correlate(const FrequencyCorrelation<T>& p) {
    T* blocks = p.packed + p.count * p.pieces * kPoint;
    pack(p.spectra, p.stride, p.piece_spectra, p.pieces, p.count, p.packed);
    pack(p.spectra, p.stride, p.block_spectra, p.blocks, p.count, blocks);
    for (index_t f = 0; f < p.count; ++f)
      correlate_one(p, p.packed + f * p.pieces * kPoint, blocks + f * p.blocks * kPoint,
                    p.out.re + f * p.out.stride, p.out.im + f * p.out.stride);
  }
};

}  // namespace
}  // namespace convbasis
