#include "convbasis/device.h"

namespace convbasis {

bool cuda_available() noexcept { return false; }

}  // namespace convbasis
