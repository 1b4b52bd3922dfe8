#include "convbasis/device.h"
#include "run_tests.h"

/// [topic]; the exit status is 77 when there is no GPU.
int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  if (!convbasis::cuda_available()) {
    std::cout << "skipped: " << convbasis::cuda::why_unavailable() << '\n';
    return kSkipped;
  }
  std::cout << convbasis::cuda::device_info(0).name << '\n';
  return check::run_tests(argc, argv);
}
