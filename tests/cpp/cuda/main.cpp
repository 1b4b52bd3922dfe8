#include <exception>
#include <filesystem>

#include "check.h"
#include "convbasis/device.h"

namespace {

constexpr int kSkipped = 77;

bool run(const check::Test& test) {
  check::failures = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    check::fail(test.file, 0, "threw '", error.what(), "'");
  }
  if (check::failures != 0) std::cerr << "FAILED " << test.name << '\n';
  return check::failures == 0;
}

}  // namespace

/// [topic]: the tests of test_<topic>.cpp, or all. 77 when there is no GPU.
int main(int argc, char** argv) {
  if (!convbasis::cuda_available()) {
    std::cout << "skipped: " << convbasis::cuda::why_unavailable() << '\n';
    return kSkipped;
  }
  std::cout << convbasis::cuda::device_info(0).name << '\n';
  std::cerr.precision(17);
  const std::string file = argc > 1 ? "test_" + std::string(argv[1]) + ".cpp" : "";
  int passed = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (!file.empty() && std::filesystem::path(test.file).filename() != file) continue;
    (run(test) ? passed : failed) += 1;
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
