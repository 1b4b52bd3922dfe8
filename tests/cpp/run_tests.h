#pragma once

#include <exception>
#include <filesystem>

#include "check.h"

namespace check {

inline bool run(const Test& test) {
  failures = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    fail(test.file, 0, "threw '", error.what(), "'");
  }
  if (failures != 0) std::cerr << "FAILED " << test.name << '\n';
  return failures == 0;
}

/// The program's exit status. [topic]: the tests of test_<topic>.cpp, or all.
inline int run_tests(int argc, char** argv) {
  std::cerr.precision(17);
  const std::string file = argc > 1 ? "test_" + std::string(argv[1]) + ".cpp" : "";
  int passed = 0, failed = 0;
  for (const Test& test : tests()) {
    if (!file.empty() && std::filesystem::path(test.file).filename() != file) continue;
    (run(test) ? passed : failed) += 1;
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace check
