#pragma once

#include <algorithm>

#include "bindings/ndarray.h"
#include "convbasis/recover.h"

namespace convbasis::bindings {

/// starts (batch, heads, k), num_bases and complete (batch, heads), seen_finite.
inline py::tuple starts_tuple(const StripStarts& found) {
  auto starts = make_array<index_t>({found.batch, found.heads, found.max_bases});
  auto counts = make_array<index_t>({found.batch, found.heads});
  auto complete = make_array<bool>({found.batch, found.heads});
  std::copy(found.starts.begin(), found.starts.end(), starts.mutable_data());
  std::copy(found.num_bases.begin(), found.num_bases.end(), counts.mutable_data());
  std::transform(found.complete.begin(), found.complete.end(), complete.mutable_data(),
                 [](char flag) { return flag != 0; });
  return py::make_tuple(starts, counts, complete, found.seen_finite);
}

}  // namespace convbasis::bindings
