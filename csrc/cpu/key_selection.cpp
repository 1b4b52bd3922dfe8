#include "cpu/key_selection.h"

#include <algorithm>

#include "core/draws.h"
#include "cpu/simd/kernels.h"

namespace convbasis {
namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

}  // namespace

template <class T>
KeySelection select_keys(const Calibration<T>& calibration, const HeadCalibration<T>& head,
                         index_t block) {
  std::vector<index_t> blocks;
  const index_t near = std::max<index_t>(block - head.near_blocks, 0);
  const bool takes_all = block < kWholeBlocks;
  for (index_t j = takes_all ? 0 : near; j <= block; ++j) blocks.push_back(j);
  index_t wanted = takes_all ? 0 : head.retrieved[at(block)];
  for (index_t r = 0; r < calibration.most_ranked && wanted > 0; ++r) {
    const index_t key_block = head.ranked[at(block * calibration.most_ranked + r)];
    if (key_block < 0) break;
    if (key_block >= near) continue;  // ranked for fewer near blocks
    blocks.push_back(key_block);
    --wanted;
  }
  std::sort(blocks.begin(), blocks.end());

  KeySelection selection;
  const auto end_of = [&](index_t b) { return std::min((b + 1) * kKeyBlock, calibration.rows); };
  index_t covered = 0;
  for (const index_t b : blocks) {
    const index_t first = b * kKeyBlock;
    if (first > covered) selection.far.push_back({covered, first});
    if (first == covered && !selection.exact.empty()) {
      selection.exact.back().last = end_of(b);
    } else {
      selection.exact.push_back({first, end_of(b)});
    }
    covered = end_of(b);
  }
  return selection;
}

template <class T>
FarKeys<T>::FarKeys(const Calibration<T>& calibration, const HeadCalibration<T>& head, index_t flat)
    : head_(head),
      seed_(calibration.options.seed),
      flat_(flat),
      n_(calibration.rows),
      wanted_(std::min(calibration.options.sample_keys, calibration.rows)),
      key_sums_(head.key_weights.size() + 1, 0.0),
      lags_back_(calibration.rows) {
  for (std::size_t j = 0; j < head.key_weights.size(); ++j)
    key_sums_[j + 1] = key_sums_[j] + static_cast<double>(head.key_weights[j]);
  kernels<T>().copy_reversed(head.lag_weights.data(), lags_back_.data(), n_);
}

template <class T>
FarDraw<T> FarKeys<T>::draw(const KeySelection& selection, index_t block) const {
  const auto lag_weight = [&](index_t first) {
    return static_cast<double>(head_.lag_weights[at(block * kKeyBlock - first)]);
  };
  const auto block_mass = [&](index_t first) {
    return lag_weight(first) * (key_sums_[at(first + kKeyBlock)] - key_sums_[at(first)]);
  };
  double total = 0;
  for (const KeyRange& range : selection.far)
    for (index_t first = range.first; first < range.last; first += kKeyBlock)
      total += block_mass(first);
  FarDraw<T> drawn;
  if (!(total > 0)) return drawn;
  const double step = total / static_cast<double>(wanted_);
  drawn.step = step;
  double passed = 0, next = uniform_draw(seed_, flat_, block) * step;
  for (const KeyRange& range : selection.far) {
    for (index_t first = range.first; first < range.last; first += kKeyBlock) {
      const double here = block_mass(first), weight = lag_weight(first);
      for (; next < passed + here; next += step) {
        const double sum = key_sums_[at(first)] + (next - passed) / weight;
        const auto begin = key_sums_.begin() + first + 1;
        const auto place = std::upper_bound(begin, begin + kKeyBlock - 1, sum) - begin;
        const index_t key = first + place;
        const double own = static_cast<double>(head_.key_weights[at(key)]);
        if (!(own > 0)) continue;  // rounding at the border of a key without weight
        drawn.keys.push_back(key);
        drawn.reciprocals.push_back(static_cast<T>(1 / (own * weight)));
        drawn.shares.push_back(static_cast<T>(1 / weight));
      }
      passed += here;
    }
  }
  return drawn;
}

template <class T>
void FarKeys<T>::add_up(const FarDraw<T>& draw, index_t first, index_t count, T* models) const {
  std::fill_n(models, count, T(0));
  for (std::size_t s = 0; s < draw.keys.size(); ++s) {
    const T* lags = head_.lag_weights.data() + first - draw.keys[s];
    for (index_t r = 0; r < count; ++r) models[r] += draw.shares[s] * lags[r];
  }
}

template <class T>
double FarKeys<T>::subtract(index_t row, double factor, index_t first, index_t last,
                            T* weights) const {
  return kernels<T>().subtract_product(weights, static_cast<T>(factor),
                                       lags_back_.data() + n_ - 1 - row + first,
                                       head_.key_weights.data() + first, last - first);
}

#define CONVBASIS_INSTANTIATE(T)                                                                \
  template KeySelection select_keys(const Calibration<T>&, const HeadCalibration<T>&, index_t); \
  template class FarKeys<T>;
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
