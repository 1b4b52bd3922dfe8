#include "cpu/key_selection.h"

#include <algorithm>

#include "core/draws.h"

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
FarKeys<T>::FarKeys(const Calibration<T>& calibration, const HeadCalibration<T>& head, index_t flat,
                    Rows<const T> values, index_t channels)
    : head_(head),
      seed_(calibration.options.seed),
      flat_(flat),
      wanted_(std::min(calibration.options.sample_keys, calibration.rows)),
      channels_(channels),
      key_sums_(head.key_weights.size() + 1, 0.0),
      block_sums_(static_cast<index_t>(head.lag_weights.size()) * (channels + 1)) {
  const auto n = static_cast<index_t>(head.key_weights.size());
  for (index_t first = 0; first < n; first += kKeyBlock) {
    T* sums = block_sums_.data() + first / kKeyBlock * (channels + 1);
    std::fill_n(sums, channels + 1, T(0));
    for (index_t j = first; j < std::min(first + kKeyBlock, n); ++j) {
      const T weight = head.key_weights[at(j)], *value = values.row(j);
      for (index_t c = 0; c < channels; ++c) sums[c] += weight * value[c];
      sums[channels] += weight;
      key_sums_[at(j + 1)] = key_sums_[at(j)] + static_cast<double>(weight);
    }
  }
}

template <class T>
FarDraw<T> FarKeys<T>::draw(const KeySelection& selection, index_t block) const {
  const auto block_mass = [&](index_t first) {
    return static_cast<double>(head_.lag_weights[at(block - first / kKeyBlock)]) *
           (key_sums_[at(first + kKeyBlock)] - key_sums_[at(first)]);
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
      const double here = block_mass(first);
      const double lag = static_cast<double>(head_.lag_weights[at(block - first / kKeyBlock)]);
      for (; next < passed + here; next += step) {
        const double sum = key_sums_[at(first)] + (next - passed) / lag;
        index_t key = first;  // the last one whose running sum begins no later: without branches
        for (index_t half = kKeyBlock / 2; half > 0; half /= 2)
          key += half * static_cast<index_t>(key_sums_[at(key + half)] <= sum);
        const T own = weight(block, key);
        if (!(own > T(0))) continue;  // rounding at the border of a key without weight
        drawn.keys.push_back(key);
        drawn.reciprocals.push_back(1 / own);
      }
      passed += here;
    }
  }
  return drawn;
}

template <class T>
void FarKeys<T>::add_up(const KeySelection& selection, index_t block, T* sums) const {
  std::fill_n(sums, channels_ + 1, T(0));
  for (const KeyRange& range : selection.far)
    for (index_t b = range.first / kKeyBlock; b < range.last / kKeyBlock; ++b) {
      const T lag = head_.lag_weights[at(block - b)],
              *own = block_sums_.data() + b * (channels_ + 1);
      for (index_t c = 0; c <= channels_; ++c) sums[c] += lag * own[c];
    }
}

#define CONVBASIS_INSTANTIATE(T)                                                                \
  template KeySelection select_keys(const Calibration<T>&, const HeadCalibration<T>&, index_t); \
  template class FarKeys<T>;
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
