// Included by kernels_impl.h: low-rank attention. Queries stand across the lanes, so that sums over
// features need no reduction; features of keys stand along them, for the same reason.

namespace convbasis {
namespace {

template <class T, class V>
struct LowRank {
  static constexpr index_t kLanes = static_cast<index_t>(V::size);
  static constexpr bool kManyRegisters = CONVBASIS_SIMD_REGISTERS >= 32;

  static void monomials_across(const T* x, const MonomialRun* runs, index_t run_count, T* out) {
    for (index_t l = 0; l < kRowBlock; l += kLanes) V(T(1)).store_unaligned(out + l);
    for (index_t r = 0; r < run_count; ++r) {
      const MonomialRun& run = runs[r];
      for (index_t l = 0; l < kRowBlock; l += kLanes) {
        const V factor = V::load_unaligned(x + run.variable * kRowBlock + l);
        const T* from = out + run.parent * kRowBlock + l;
        T* to = out + run.first * kRowBlock + l;
        for (index_t t = 0; t < run.count; ++t)
          (factor * V::load_unaligned(from + t * kRowBlock)).store_unaligned(to + t * kRowBlock);
      }
    }
  }

  /// Monomials along the lanes, of R rows. Stores are aligned, for those that cross a cache line
  /// are slow: the first vector of a run keeps what the run before has left there. Rows take turns,
  /// so that what a run reads has left the store buffer, and short runs are not all loop overhead.
  template <int R>
  static void monomials_of(const T* x, index_t variables, const MonomialRun* runs,
                           index_t run_count, T* out, index_t stride) {
    alignas(64) T numbers[kLanes];
    for (index_t l = 0; l < kLanes; ++l) numbers[l] = static_cast<T>(l);
    const V lane = V::load_aligned(numbers);
    for (int i = 0; i < R; ++i) out[i * stride] = T(1);
    for (const MonomialRun* run = runs; run != runs + run_count; ++run) {
      const index_t before = run->first % kLanes, count = before + run->count;
      const auto is_kept = lane < V(static_cast<T>(before));
      const T* factor = x + run->variable;
      const T* from = out + run->parent - before;
      T* to = out + run->first - before;
      for (int i = 0; i < R; ++i)
        xsimd::select(is_kept, V::load_aligned(to + i * stride),
                      V(factor[i * variables]) * V::load_unaligned(from + i * stride))
            .store_aligned(to + i * stride);
      for (index_t t = kLanes; t < count; t += kLanes)
        for (int i = 0; i < R; ++i)
          (V(factor[i * variables]) * V::load_unaligned(from + t + i * stride))
              .store_aligned(to + t + i * stride);
    }
  }

  static void monomials_along(const T* x, index_t variables, index_t rows, const MonomialRun* runs,
                              index_t run_count, T* out, index_t stride) {
    constexpr index_t kTurns = 32;
    index_t i = 0;
    for (; i + kTurns <= rows; i += kTurns)
      monomials_of<kTurns>(x + i * variables, variables, runs, run_count, out + i * stride, stride);
    for (; i < rows; ++i)
      monomials_of<1>(x + i * variables, variables, runs, run_count, out + i * stride, stride);
  }

  template <int M, int R, bool kHasFactor>
  static void product_of(const StateProduct<T>& p) {
    for (index_t l = 0; l < kRowBlock; l += R * kLanes) {
      V sums[M][R], factor[R];
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r)
          sums[m][r] = V::load_unaligned(p.out + m * kRowBlock + l + r * kLanes);
      if constexpr (kHasFactor)
        for (int r = 0; r < R; ++r) factor[r] = V::load_unaligned(p.factor + l + r * kLanes);
      const T* from = p.features + l;
      for (index_t f = p.first, last = p.first + p.count; f < last;) {
        const index_t within = f % kFeatureBlock;
        const index_t left = last - f, block = kFeatureBlock - within;
        const T* state = p.state + f / kFeatureBlock * (M * kFeatureBlock) + within;
        const T* const end = state + (left < block ? left : block);
        f += left < block ? left : block;
        for (; state != end; ++state, from += kRowBlock) {
          V feature[R];
          for (int r = 0; r < R; ++r) {
            feature[r] = V::load_unaligned(from + r * kLanes);
            if constexpr (kHasFactor) feature[r] *= factor[r];
          }
          for (int m = 0; m < M; ++m) {
            const V weight(state[m * kFeatureBlock]);
            for (int r = 0; r < R; ++r) sums[m][r] = xsimd::fma(feature[r], weight, sums[m][r]);
          }
        }
      }
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r)
          sums[m][r].store_unaligned(p.out + m * kRowBlock + l + r * kLanes);
    }
  }

  template <int M>
  static void add_product(const StateProduct<T>& p) {
    constexpr int kWanted = kManyRegisters ? (M >= 7 ? 2 : 4) : (M >= 7 ? 1 : 2);
    constexpr int kMost = static_cast<int>(kRowBlock / kLanes);
    constexpr int kVectors = kWanted < kMost ? kWanted : kMost;
    if (p.factor != nullptr) {
      product_of<M, kVectors, true>(p);
    } else {
      product_of<M, kVectors, false>(p);
    }
  }

  static void add_state_product(const StateProduct<T>& p, index_t values) {
    switch (values) {
      case 3:
        return add_product<3>(p);
      case 5:
        return add_product<5>(p);
      case 7:
        return add_product<7>(p);
      default:
        return add_product<9>(p);
    }
  }

  /// Feature vectors [u, u + F) of a state.
  template <int M, int F>
  static void add_outer_of(const T* features, index_t feature_stride, const T* with,
                           index_t value_stride, index_t rows, index_t u, T* state) {
    constexpr index_t kVectors = kFeatureBlock / kLanes;  // in a block
    V sums[M][F];
    T* place[F];
    for (int f = 0; f < F; ++f) {
      place[f] = state + (u + f) / kVectors * (M * kFeatureBlock) + (u + f) % kVectors * kLanes;
      for (int m = 0; m < M; ++m) sums[m][f] = V::load_unaligned(place[f] + m * kFeatureBlock);
    }
    const T* from = features + u * kLanes;
    for (index_t i = 0; i < rows; ++i, from += feature_stride, with += value_stride) {
      V feature[F];
      for (int f = 0; f < F; ++f) feature[f] = V::load_unaligned(from + f * kLanes);
      for (int m = 0; m < M; ++m) {
        const V weight(with[m]);
        for (int f = 0; f < F; ++f) sums[m][f] = xsimd::fma(feature[f], weight, sums[m][f]);
      }
    }
    for (int f = 0; f < F; ++f)
      for (int m = 0; m < M; ++m) sums[m][f].store_unaligned(place[f] + m * kFeatureBlock);
  }

  template <int M>
  static void add_outer(const T* features, index_t feature_stride, const T* with,
                        index_t value_stride, index_t rows, index_t count, T* state) {
    constexpr int kWide = kManyRegisters ? (M >= 9 ? 3 : 4) : (M >= 7 ? 1 : 2);
    const index_t vectors = count / kLanes;
    index_t u = 0;
    for (; u + kWide <= vectors; u += kWide)
      add_outer_of<M, kWide>(features, feature_stride, with, value_stride, rows, u, state);
    for (; u < vectors; ++u)
      add_outer_of<M, 1>(features, feature_stride, with, value_stride, rows, u, state);
  }

  static void add_outer_products(const T* features, index_t feature_stride, const T* with,
                                 index_t value_stride, index_t rows, index_t count, T* state,
                                 index_t values) {
    const auto add = values == 3   ? add_outer<3>
                     : values == 5 ? add_outer<5>
                     : values == 7 ? add_outer<7>
                                   : add_outer<9>;
    add(features, feature_stride, with, value_stride, rows, count, state);
  }

  /// Keys [t, t + K) of a tile.
  template <int K>
  static void polynomial_of(const PolynomialTile<T>& p, index_t t) {
    for (index_t l = 0; l < kRowBlock; l += kLanes) {
      V logits[K], sums[K];
      for (int k = 0; k < K; ++k) logits[k] = V(T(0));
      const T* key = p.key + t * p.stride;
      for (index_t c = 0; c < p.head_dim; ++c) {
        const V query = V::load_unaligned(p.query + c * kRowBlock + l);
        for (int k = 0; k < K; ++k)
          logits[k] = xsimd::fma(query, V(key[k * p.stride + c]), logits[k]);
      }
      for (int k = 0; k < K; ++k) sums[k] = V(p.coefficients[p.degree]);
      for (index_t g = p.degree - 1; g >= 0; --g) {
        const V coefficient(p.coefficients[g]);
        for (int k = 0; k < K; ++k) sums[k] = xsimd::fma(sums[k], logits[k], coefficient);
      }
      const V start = V::load_unaligned(p.start + l), stop = V::load_unaligned(p.stop + l);
      for (int k = 0; k < K; ++k) {
        const V place(static_cast<T>(t + k));
        const auto seen = (place >= start) & (place < stop);
        xsimd::select(seen, sums[k], V(T(0))).store_unaligned(p.out + (t + k) * kRowBlock + l);
      }
    }
  }

  static void polynomial_tile(const PolynomialTile<T>& p) {
    constexpr int kKeys = 8;
    index_t t = 0;
    for (; t + kKeys <= p.count; t += kKeys) polynomial_of<kKeys>(p, t);
    for (; t < p.count; ++t) polynomial_of<1>(p, t);
  }
};

}  // namespace
}  // namespace convbasis
