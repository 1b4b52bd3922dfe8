// Included by kernels_impl.h: transforms along rows, one vector of channels at a time, so that they
// need no shuffles.
//
// Values of a polynomial x(z) of degree < L at the roots of z^L = i. A block of length n holds x
// modulo z^n - c; radix r splits it into r blocks modulo z^(n/r) - c_q, c_q^r = c, by scaling the
// r parts of the block with powers of c^(1/r) and a plain transform of r points. The values come in
// the order in which the blocks fall: they only meet values in the same order.

#include "cpu/simd/butterfly_impl.h"
#include "cpu/simd/kernels.h"

namespace convbasis {
namespace {

template <class T, class V>
class VectorFft {
 public:
  static void forward_rows(const BlockFft<T>& fft, Rows<const T> x, index_t offset, index_t count,
                           T* spectrum) {
    const VectorFft self(fft);
    V* points = vectors(spectrum);
    const auto load = [x, offset, count](index_t i) {
      if (i < offset || i >= offset + count) return V(T(0));
      const T* row = x.row(i - offset);
      __builtin_prefetch(row + kAhead * x.stride);
      return V::load_unaligned(row);
    };
    self.by_radix(0, [&](auto radix) { self.template first_pass<radix>(load, points); });
    self.forward(points, [points](index_t f, const V& re, const V& im) {
      points[2 * f] = re;
      points[2 * f + 1] = im;
    });
  }

  static void inverse_rows(const BlockFft<T>& fft, T* spectrum, index_t offset, index_t count,
                           Rows<T> y) {
    const VectorFft self(fft);
    const auto add = [y, offset, count](index_t i, const V& value) {
      if (i < offset || i >= offset + count) return;
      T* to = y.row(i - offset);
      __builtin_prefetch(to + kAhead * y.stride, 1);
      (V::load_unaligned(to) + value).store_unaligned(to);
    };
    self.inverse(vectors(spectrum));
    self.by_radix(
        0, [&](auto radix) { self.template final_inverse_pass<radix>(vectors(spectrum), add); });
  }

  static void forward_windows(const BlockFft<T>& fft, const Window<T>* windows, Spectrum<T> out,
                              T* scratch) {
    const VectorFft self(fft);
    V* points = vectors(scratch);
    // Squares of lanes x lanes are transposed in registers.
    V early[static_cast<std::size_t>(kLanes)], late[static_cast<std::size_t>(kLanes)];
    for (index_t i = 0; i < fft.length; i += kLanes) {
      for (index_t lane = 0; lane < kLanes; ++lane) {
        early[lane] = load_lags(windows[lane], i);
        late[lane] = load_lags(windows[lane], fft.length + i);
      }
      xsimd::transpose(early, early + kLanes);
      xsimd::transpose(late, late + kLanes);
      for (index_t l = 0; l < kLanes; ++l) {
        points[2 * (i + l)] = late[l];
        points[2 * (i + l) + 1] = -early[l];
      }
    }
    const V scale(T(1) / static_cast<T>(fft.length));
    const auto store = [out, scale](index_t f, const V& re, const V& im) {
      (re * scale).store_unaligned(out.re + f * out.stride);
      (im * scale).store_unaligned(out.im + f * out.stride);
    };
    self.run_pass(0, {0, 1}, points);
    self.forward(points, store);
  }

  static void inverse_windows(const BlockFft<T>& fft, Spectrum<const T> in,
                              const WindowSums<T>* windows, T* scratch) {
    const VectorFft self(fft);
    V* points = vectors(scratch);
    const V scale(T(1) / static_cast<T>(fft.length));
    for (index_t f = 0; f < fft.length; ++f) {
      points[2 * f] = scale * V::load_unaligned(in.re + f * in.stride);
      points[2 * f + 1] = scale * V::load_unaligned(in.im + f * in.stride);
    }
    self.inverse(points);
    self.template run_pass<true>(0, {0, 1}, points);
    V late[static_cast<std::size_t>(kLanes)], early[static_cast<std::size_t>(kLanes)];
    for (index_t i = 0; i < fft.length; i += kLanes) {
      for (index_t l = 0; l < kLanes; ++l) {
        late[l] = points[2 * (i + l)];
        early[l] = -points[2 * (i + l) + 1];
      }
      xsimd::transpose(late, late + kLanes);
      xsimd::transpose(early, early + kLanes);
      for (index_t lane = 0; lane < kLanes; ++lane) {
        add_lags(windows[lane].late, i, late[lane], windows[lane].late_count);
        add_lags(windows[lane].early, i, early[lane], windows[lane].early_count);
      }
    }
  }

 private:
  static constexpr index_t kLanes = static_cast<index_t>(V::size);
  static constexpr index_t kAhead = 8;  // rows that are asked for early: they lie far apart

  struct Range {
    index_t begin, end;
  };
  template <int R>
  using Radix = std::integral_constant<int, R>;

  static V* vectors(T* scratch) { return reinterpret_cast<V*>(scratch); }

  static V load_lags(const Window<T>& window, index_t at) {
    const index_t left = window.count - at;
    if (left >= kLanes) return V::load_unaligned(window.lags + at);
    alignas(64) T some[V::size];
    for (index_t i = 0; i < kLanes; ++i) some[i] = i < left ? window.lags[at + i] : T(0);
    return V::load_aligned(some);
  }

  static void add_lags(T* to, index_t at, const V& lags, index_t count) {
    if (at + kLanes <= count) {
      (V::load_unaligned(to + at) + lags).store_unaligned(to + at);
      return;
    }
    alignas(64) T some[V::size];
    lags.store_aligned(some);
    for (index_t i = at; i < count; ++i) to[i] += some[i - at];
  }

  explicit VectorFft(const BlockFft<T>& fft) : fft_(fft) {}

  [[nodiscard]] const typename BlockFft<T>::Pass& pass(int p) const { return fft_.passes[p]; }
  [[nodiscard]] int last() const { return fft_.count - 1; }
  /// Blocks of pass p that lie in one part, a block of the first cached pass.
  [[nodiscard]] Range blocks_of(index_t part, int p) const {
    const index_t count = pass(fft_.cached).length / pass(p).length;
    return {part * count, (part + 1) * count};
  }
  [[nodiscard]] const T* twiddles(int p, index_t block) const {
    return pass(p).twiddles + block * 2 * (pass(p).radix - 1);
  }

  template <class F>
  void by_radix(int p, const F& run) const {
    if (pass(p).radix == 8) {
      run(Radix<8>());
    } else {
      run(Radix<4>());
    }
  }

  /// Part m times twiddle m, or its conjugate.
  template <int R>
  XSIMD_INLINE static void scale_parts(V (&re)[R], V (&im)[R], const T* twiddles) {
    for (int m = 1; m < R; ++m) {
      const V c(twiddles[2 * m - 2]), s(twiddles[2 * m - 1]), r = re[m];
      re[m] = xsimd::fnma(im[m], s, r * c);
      im[m] = xsimd::fma(im[m], c, r * s);
    }
  }
  template <int R>
  XSIMD_INLINE static void unscale_parts(V (&re)[R], V (&im)[R], const T* twiddles) {
    for (int m = 1; m < R; ++m) {
      const V c(twiddles[2 * m - 2]), s(twiddles[2 * m - 1]), r = re[m];
      re[m] = xsimd::fma(im[m], s, r * c);
      im[m] = xsimd::fnma(r, s, im[m] * c);
    }
  }

  template <int R>
  XSIMD_INLINE static void load_parts(const V* points, index_t step, V (&re)[R], V (&im)[R]) {
    for (int m = 0; m < R; ++m) {
      re[m] = points[2 * m * step];
      im[m] = points[2 * m * step + 1];
    }
  }
  template <int R>
  XSIMD_INLINE static void store_parts(V* points, index_t step, const V (&re)[R],
                                       const V (&im)[R]) {
    for (int m = 0; m < R; ++m) {
      points[2 * m * step] = re[m];
      points[2 * m * step + 1] = im[m];
    }
  }

  /// The first pass, of real rows.
  template <int R, class Load>
  void first_pass(const Load load, V* points) const {
    const T* w = twiddles(0, 0);
    const index_t step = fft_.length / R;
    for (index_t j = 0; j < step; ++j) {
      V re[R], im[R];
      re[0] = load(j);
      im[0] = V(T(0));
      for (int m = 1; m < R; ++m) {
        const V x = load(j + m * step);
        re[m] = x * V(w[2 * m - 2]);
        im[m] = x * V(w[2 * m - 1]);
      }
      transform(re, im);
      store_parts<R>(points + 2 * j, step, re, im);
    }
  }

  template <int R, bool Inverse>
  void middle_pass(int p, Range blocks, V* points) const {
    const index_t size = pass(p).length, step = size / R;
    for (index_t block = blocks.begin; block < blocks.end; ++block, points += 2 * size) {
      const T* w = twiddles(p, block);
      for (index_t j = 0; j < step; ++j) {
        V re[R], im[R];
        load_parts<R>(points + 2 * j, step, re, im);
        if constexpr (Inverse) {
          transform(im, re);
          unscale_parts<R>(re, im, w);
        } else {
          scale_parts<R>(re, im, w);
          transform(re, im);
        }
        store_parts<R>(points + 2 * j, step, re, im);
      }
    }
  }

  template <int R, class Store>
  void last_pass(Range blocks, const V* points, const Store store) const {
    const T* w = twiddles(last(), blocks.begin);
    for (index_t block = blocks.begin; block < blocks.end; ++block) {
      V re[R], im[R];
      load_parts<R>(points, 1, re, im);
      scale_parts<R>(re, im, w);
      transform(re, im);
      for (int m = 0; m < R; ++m) store(block * R + m, re[m], im[m]);
      points += 2 * R;
      w += 2 * (R - 1);
    }
  }

  /// The last pass of the inverse: the real part is all that is wanted.
  template <int R, class Add>
  void final_inverse_pass(const V* points, const Add add) const {
    const T* w = twiddles(0, 0);
    const index_t step = fft_.length / R;
    for (index_t j = 0; j < step; ++j) {
      V re[R], im[R];
      load_parts<R>(points + 2 * j, step, re, im);
      transform(im, re);
      add(j, re[0]);
      for (int m = 1; m < R; ++m)
        add(j + m * step, xsimd::fma(im[m], V(w[2 * m - 1]), re[m] * V(w[2 * m - 2])));
    }
  }

  template <bool Inverse = false>
  void run_pass(int p, Range blocks, V* points) const {
    by_radix(p, [&](auto radix) { middle_pass<radix, Inverse>(p, blocks, points); });
  }

  /// All passes but the first: long ones over everything, the others part after part.
  template <class Store>
  void forward(V* points, const Store& store) const {
    for (int p = 1; p < fft_.cached; ++p) run_pass(p, {0, fft_.length / pass(p).length}, points);
    const index_t size = pass(fft_.cached).length;
    for (index_t part = 0; part < fft_.length / size; ++part) {
      V* at = points + 2 * part * size;
      for (int p = fft_.cached; p < last(); ++p) run_pass(p, blocks_of(part, p), at);
      by_radix(last(), [&](auto radix) { last_pass<radix>(blocks_of(part, last()), at, store); });
    }
  }

  /// The same backwards, without the final pass.
  void inverse(V* points) const {
    const index_t size = pass(fft_.cached).length;
    for (index_t part = 0; part < fft_.length / size; ++part)
      for (int p = last(); p >= fft_.cached; --p)
        run_pass<true>(p, blocks_of(part, p), points + 2 * part * size);
    for (int p = fft_.cached - 1; p >= 1; --p)
      run_pass<true>(p, {0, fft_.length / pass(p).length}, points);
  }

  const BlockFft<T>& fft_;
};

}  // namespace
}  // namespace convbasis
