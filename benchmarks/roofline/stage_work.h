#pragma once

#include <vector>

#include "convbasis/report.h"

namespace roofline {

/// What one stage of a forward call has to do at the least, whoever does it.
struct StageWork {
  const char* name;
  double convbasis::StageSeconds::* seconds;
  double flops;  ///< nominal: 5 L log2 L for a complex FFT, whose additions seldom pair with its
                 ///< multiplications: half of the peak is near; 8 for a complex multiply-add
  double bytes;  ///< each array a stage reads or writes, once
};

/// The work of one causal head in float: `starts` of its strips, `rows` rows, `channels` channels,
/// and the blocks that the report names.
[[nodiscard]] std::vector<StageWork> work_of(const std::vector<convbasis::index_t>& starts,
                                             convbasis::index_t rows, convbasis::index_t channels,
                                             const std::vector<convbasis::index_t>& block_lengths);

}  // namespace roofline
