#pragma once

#include <string>

#include "bindings/ndarray.h"
#include "convbasis/mask.h"

namespace convbasis::bindings {

/// A mask as Python describes it, (kind, numbers and arrays in the order of the C++ struct), or
/// None. The arrays are looked at, not copied: the tuple has to outlive the mask.
Mask mask_of(const std::optional<py::tuple>& description);

}  // namespace convbasis::bindings
