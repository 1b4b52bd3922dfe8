#include "check.h"
#include "convbasis/device.h"

TEST(this_build_has_no_gpu_and_says_so) { CHECK(!convbasis::cuda_available()); }
