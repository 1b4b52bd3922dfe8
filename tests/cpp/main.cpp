#include "convbasis/cost_model.h"
#include "run_tests.h"

/// convbasis_tests [topic]
int main(int argc, char** argv) {
  // The schedules of the tests are not a matter of the clock.
  convbasis::set_cost_model<float>({0.1, 0.05, 0.01, 0.04, 4});
  convbasis::set_cost_model<double>({0.2, 0.1, 0.02, 0.08, 5});
  return check::run_tests(argc, argv);
}
