#include "cuda/far_gradient.h"
#include "cuda/level_run.h"

namespace convbasis::cuda {
namespace {

/// Which terms are in memory, and where: columns are (slots, terms, channels).
struct TermRange {
  std::uint32_t first, terms, channels;
};

template <class T>
struct GatherTerms {
  Array<T> x;
  TermFactors<T> factors;
  const Slot* slots;
  TermRange range;
  index_t block, offset, columns;
  T* to;
  CONVBASIS_DEVICE void operator()(index_t at, index_t column) const {
    const auto wide = static_cast<std::uint32_t>(column), item = wide / range.channels;
    const Slot slot = slots[item / range.terms];
    const index_t q = at - offset, row = slot.block * block + q;
    const bool taken = q >= 0 && q < block && row >= slot.first && row < slot.last;
    to[at * columns + column] =
        taken ? x.load(slot.head, row, wide % range.channels) *
                    factors.at(slot.head, row, range.first + item % range.terms)
              : T(0);
  }
};

/// One thread a row of a slot and channel of y.
template <class T>
struct AddTerms {
  Array<T> y;
  TermFactors<T> factors;
  const Slot* slots;
  TermRange range;
  index_t block, offset, columns;
  const T* from;
  T factor;
  CONVBASIS_DEVICE void operator()(index_t q, index_t column) const {
    const auto narrow = static_cast<std::uint32_t>(column), item = narrow / range.channels;
    const auto c = narrow % range.channels;
    const Slot slot = slots[item];
    const index_t row = slot.block * block + q;
    if (row < slot.first || row >= slot.last) return;
    const T* mine =
        from + (offset + q) * columns + index_t{item} * range.terms * range.channels + c;
    T sum = 0;
    for (std::uint32_t r = 0; r < range.terms; ++r)
      sum += factors.at(slot.head, row, range.first + r) * mine[index_t{r} * range.channels];
    y.store(slot.head, row, c, y.load(slot.head, row, c) + factor * sum);
  }
};

}  // namespace

template <class T>
void add_far_terms(const Strips<T>& strips, const Level& level, bool transpose,
                   const TermFactors<T>& after, const TermFactors<T>& before, const Array<T>& x,
                   const Array<T>& y, index_t workspace, const Stream& stream) {
  const index_t terms = before.numbers.channels + 1, channels = x.channels, block = level.block;
  for (const LevelPlan& plan : plan_level(strips.layouts, level, transpose, terms * channels,
                                          static_cast<index_t>(sizeof(T)), workspace)) {
    const LevelRun<T> run(strips, plan, transpose, stream, {});
    const index_t together = std::max<index_t>(plan.width / channels, 1);
    for (const Chunk& chunk : plan.chunks) {
      for (index_t first = 0; first < terms; first += together) {
        const index_t count = std::min(together, terms - first);
        const TermRange range{static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(count),
                              static_cast<std::uint32_t>(channels)};
        run.run(
            chunk, count * channels,
            [&](const Slot* slots, index_t offset, index_t columns, T* to) {
              launch(stream, 2 * block, columns,
                     GatherTerms<T>{x, before, slots, range, block, offset, columns, to});
            },
            [&](const Slot* slots, index_t offset, index_t columns, const T* from) {
              launch(
                  stream, block, chunk.outputs * channels,
                  AddTerms<T>{y, after, slots, range, block, offset, columns, from, run.factor()});
            });
      }
    }
  }
}

#define CONVBASIS_INSTANTIATE(T)                                                                \
  template void add_far_terms(const Strips<T>&, const Level&, bool, const TermFactors<T>&,      \
                              const TermFactors<T>&, const Array<T>&, const Array<T>&, index_t, \
                              const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
