#include <exception>
#include <filesystem>

#include "check.h"
#include "convbasis/cost_model.h"

namespace {

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

/// convbasis_tests [topic]: the tests of test_<topic>.cpp, or all.
int main(int argc, char** argv) {
  std::cerr.precision(17);
  // The schedules of the tests are not a matter of the clock.
  convbasis::set_cost_model<float>({0.1, 0.05, 0.01, 0.04, 4});
  convbasis::set_cost_model<double>({0.2, 0.1, 0.02, 0.08, 5});
  const std::string file = argc > 1 ? "test_" + std::string(argv[1]) + ".cpp" : "";
  int passed = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (!file.empty() && std::filesystem::path(test.file).filename() != file) continue;
    (run(test) ? passed : failed) += 1;
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
