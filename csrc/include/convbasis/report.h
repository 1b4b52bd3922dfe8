#pragma once

#include <vector>

#include "convbasis/types.h"

namespace convbasis {

/// Wall-clock seconds by stage, summed over heads.
struct StageSeconds {
  double exp = 0, transform = 0, products = 0, inverse = 0, diagonal = 0, normalize = 0, rows = 0;
};

/// What conv_attention did.
struct ForwardReport {
  std::vector<index_t> rows_exact;     ///< (batch, heads): rows summed directly, see rounding_bound
  std::vector<double> rounding_bound;  ///< (batch, heads): largest relative rounding error that
                                       ///< a row kept from the FFT may have
  std::vector<index_t> block_lengths;  ///< of the schedule, outermost first; last = direct tiles
  StageSeconds seconds;
};

}  // namespace convbasis
