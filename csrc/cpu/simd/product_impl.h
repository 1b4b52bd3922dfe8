// Included by kernels_impl.h: products of spectra, frequency by frequency. The inputs of a few
// frequencies are packed, so that those of one stand together; R outputs stay in registers while
// the inputs pass.

namespace convbasis {
namespace {

template <class T, class V>
struct Products {
  static constexpr index_t kLanes = static_cast<index_t>(V::size);
  static constexpr int kOutputs = CONVBASIS_SIMD_REGISTERS >= 32 ? 8 : 4;

  /// One of the packed frequencies.
  struct One {
    const T* weight_re;
    const T* weight_im;
    const index_t* offset;
    const index_t* first;
    const index_t* block;
    const T* in;
    T* out;
    index_t stride;
  };

  /// re, im of outputs From .. R - 1 += weight o times the input.
  template <int R, int From, bool Conjugate, class Weight>
  XSIMD_INLINE static void add(V (&re)[R], V (&im)[R], const T* in, const One& p,
                               const Weight& at) {
    const V xr = V::load_unaligned(in), xi = V::load_unaligned(in + kLanes);
    for (int o = From; o < R; ++o) {
      const index_t w = at(o);
      const V wr(p.weight_re[w]), wi(p.weight_im[w]);
      re[o] = xsimd::fma(wr, xr, re[o]);
      im[o] = xsimd::fma(wr, xi, im[o]);
      if constexpr (Conjugate) {
        re[o] = xsimd::fma(wi, xi, re[o]);
        im[o] = xsimd::fnma(wi, xr, im[o]);
      } else {
        re[o] = xsimd::fnma(wi, xi, re[o]);
        im[o] = xsimd::fma(wi, xr, im[o]);
      }
    }
  }

  template <int R>
  XSIMD_INLINE static void store(const V (&re)[R], const V (&im)[R], T* out, index_t stride) {
    for (int o = 0; o < R; ++o) {
      re[o].store_unaligned(out + o * stride);
      im[o].store_unaligned(out + o * stride + kLanes);
    }
  }

  /// Pieces of block `block + From - 1` act on the blocks after it, and so on for the next ones.
  template <int R, int From>
  XSIMD_INLINE static void add_inside(V (&re)[R], V (&im)[R], const One& p, index_t block,
                                      index_t origin) {
    if constexpr (From < R) {
      const index_t from = block + From - 1;
      for (index_t s = p.first[from]; s < p.first[from + 1]; ++s)
        add<R, From, false>(re, im, p.in + (s - origin) * 2 * kLanes, p,
                            [&](int o) { return p.offset[s] + block + o; });
      add_inside<R, From + 1>(re, im, p, block, origin);
    }
  }

  template <int R>
  static index_t blocks(const One& p, index_t begin, index_t block, index_t end) {
    for (; block + R <= end; block += R) {
      V re[R], im[R];
      for (int o = 0; o < R; ++o) re[o] = im[o] = V(T(0));
      const index_t origin = p.first[begin];
      for (index_t s = origin; s < p.first[block]; ++s)
        add<R, 0, false>(re, im, p.in + (s - origin) * 2 * kLanes, p,
                         [&](int o) { return p.offset[s] + block + o; });
      add_inside<R, 1>(re, im, p, block, origin);
      store<R>(re, im, p.out + (block - begin - 1) * p.stride, p.stride);
    }
    return block;
  }

  static void multiply_one(const One& p, index_t begin, index_t end) {
    index_t block = blocks<kOutputs>(p, begin, begin + 1, end);
    block = blocks<kOutputs / 2>(p, begin, block, end);
    blocks<1>(p, begin, block, end);
  }

  /// Blocks that piece s + From sees and the last piece of the group does not.
  template <int R, int O>
  XSIMD_INLINE static void add_rest(V (&re)[R], V (&im)[R], const One& p, index_t s,
                                    index_t begin) {
    if constexpr (O + 1 < R) {
      for (index_t b = p.block[s + O] + 1; b <= p.block[s + R - 1]; ++b) {
        V one_re[1] = {re[O]}, one_im[1] = {im[O]};
        add<1, 0, true>(one_re, one_im, p.in + (b - begin - 1) * 2 * kLanes, p,
                        [&](int) { return p.offset[s + O] + b; });
        re[O] = one_re[0];
        im[O] = one_im[0];
      }
      add_rest<R, O + 1>(re, im, p, s, begin);
    }
  }

  template <int R>
  static index_t pieces(const One& p, index_t begin, index_t s, index_t end) {
    const index_t origin = p.first[begin];
    for (; s + R <= p.first[end - 1]; s += R) {
      V re[R], im[R];
      for (int o = 0; o < R; ++o) re[o] = im[o] = V(T(0));
      for (index_t b = p.block[s + R - 1] + 1; b < end; ++b)
        add<R, 0, true>(re, im, p.in + (b - begin - 1) * 2 * kLanes, p,
                        [&](int o) { return p.offset[s + o] + b; });
      add_rest<R, 0>(re, im, p, s, begin);
      store<R>(re, im, p.out + (s - origin) * p.stride, p.stride);
    }
    return s;
  }

  static void multiply_transposed_one(const One& p, index_t begin, index_t end) {
    index_t s = pieces<kOutputs>(p, begin, p.first[begin], end);
    s = pieces<kOutputs / 2>(p, begin, s, end);
    pieces<1>(p, begin, s, end);
  }

  /// The values that are needed next are asked for while these are copied.
  static void pack(const FrequencyProduct<T>& p, index_t inputs) {
    for (index_t s = 0; s < inputs; ++s) {
      const T* from = p.spectra + s * p.stride;
      for (index_t f = 0; f < p.count; ++f, from += 2 * kLanes) {
        T* to = p.packed + (f * inputs + s) * 2 * kLanes;
        V::load_unaligned(from).store_unaligned(to);
        V::load_unaligned(from + kLanes).store_unaligned(to + kLanes);
        __builtin_prefetch(from + p.count * 2 * kLanes);
        __builtin_prefetch(from + p.count * 2 * kLanes + kLanes);
      }
    }
  }

  template <class Multiply>
  static void each_frequency(const FrequencyProduct<T>& p, index_t inputs,
                             const Multiply& multiply_it) {
    pack(p, inputs);
    for (index_t f = 0; f < p.count; ++f)
      multiply_it(One{p.weight_re + f * p.weight_stride, p.weight_im + f * p.weight_stride,
                      p.offset, p.first, p.block, p.packed + f * inputs * 2 * kLanes,
                      p.spectra + f * 2 * kLanes, p.stride});
  }

  static void multiply(const FrequencyProduct<T>& p, index_t begin, index_t end) {
    each_frequency(p, p.first[end - 1] - p.first[begin],
                   [=](const One& one) { multiply_one(one, begin, end); });
  }

  static void multiply_transposed(const FrequencyProduct<T>& p, index_t begin, index_t end) {
    each_frequency(p, end - begin - 1,
                   [=](const One& one) { multiply_transposed_one(one, begin, end); });
  }
};

}  // namespace
}  // namespace convbasis
