#include "cpu/fft_plan.h"

#define POCKETFFT_NO_MULTITHREADING
#include <pocketfft.hpp>

namespace convbasis {
namespace {

constexpr index_t kCached = 256;  // points whose passes are run together

/// 8 where a power of 8 is left, else 4.
index_t best_radix(index_t block) {
  while (block > 8) block /= 8;
  return block == 8 ? 8 : 4;
}

}  // namespace

template <class T>
FftPlan<T>::FftPlan(index_t length) {
  // Angles are counted in units of 1 / (4 L) of a turn: that of i is L.
  const index_t turn = 4 * length;
  const pocketfft::detail::sincos_2pibyn<T> unit(static_cast<std::size_t>(turn));
  std::vector<index_t> angles{length}, begins;
  fft_.length = length;
  fft_.cached = 1;
  for (index_t block = length; block > 1;) {
    const index_t radix = best_radix(block);
    begins.push_back(static_cast<index_t>(twiddles_.size()));
    fft_.passes[fft_.count++] = {radix, block, nullptr};
    if (block > kCached && block / radix > 1) fft_.cached = fft_.count;
    std::vector<index_t> children;
    for (const index_t angle : angles) {
      for (index_t m = 1; m < radix; ++m) {
        const auto root = unit[static_cast<std::size_t>(m * (angle / radix))];
        twiddles_.push_back(root.r);
        twiddles_.push_back(root.i);
      }
      for (index_t q = 0; q < radix; ++q) children.push_back((angle + q * turn) / radix);
    }
    angles = std::move(children);
    block /= radix;
  }
  for (std::size_t p = 0; p < begins.size(); ++p)
    fft_.passes[p].twiddles = twiddles_.data() + begins[p];
}

template class FftPlan<float>;
template class FftPlan<double>;

}  // namespace convbasis
