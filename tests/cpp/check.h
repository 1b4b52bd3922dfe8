#pragma once

// What the C++ tests need of a test framework, and no more:
//
//   TEST(shared_plan_gives_the_same_result) { CHECK(a == b); CHECK_NEAR(x, 2.0, 1e-12); }
//
// A failed CHECK is printed and counted and the test goes on; an exception ends its test.

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace check {

struct Test {
  const char* name;
  const char* file;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline int failures = 0;  // of the test that runs now; CHECK on the test's own thread only

struct Registered {
  Registered(const char* name, const char* file, void (*run)()) {
    tests().push_back({name, file, run});
  }
};

template <class... Parts>
void fail(const char* file, int line, const Parts&... parts) {
  ++failures;
  std::cerr << file << ':' << line << ": ";
  (std::cerr << ... << parts) << '\n';
}

template <class Error, class Function>
void throws(const char* file, int line, Function&& function, std::string_view part_of_message) {
  try {
    function();
  } catch (const Error& error) {
    if (std::string_view(error.what()).find(part_of_message) == std::string_view::npos) {
      fail(file, line, "message is '", error.what(), "'; expected '", part_of_message, "' in it");
    }
    return;
  }
  fail(file, line, "nothing was thrown; expected '", part_of_message, "'");
}

}  // namespace check

#define TEST(name)                                                                \
  static void test_##name();                                                      \
  static const check::Registered registered_##name(#name, __FILE__, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

/// |got - want| <= tolerance; a NaN fails.
#define CHECK_NEAR(got, want, tolerance)                                                   \
  do {                                                                                     \
    const auto got_ = (got);                                                               \
    const auto want_ = (want);                                                             \
    if (!(std::abs(got_ - want_) <= (tolerance)))                                          \
      check::fail(__FILE__, __LINE__, #got " is ", got_, "; expected ", want_, " within ", \
                  (tolerance));                                                            \
  } while (false)

/// The expression throws Error and its message contains the text.
#define CHECK_THROWS(expression, Error, text) \
  check::throws<Error>(__FILE__, __LINE__, [&] { (void)(expression); }, text)
