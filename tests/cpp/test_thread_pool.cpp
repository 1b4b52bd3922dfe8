#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "convbasis/error.h"
#include "core/thread_pool.h"

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace convbasis;

namespace {

index_t sum_of_items(int threads, index_t count) {
  std::vector<index_t> seen(static_cast<std::size_t>(count), 0);
  parallel_for({threads}, count,
               [&](index_t item, int) { seen[static_cast<std::size_t>(item)] += item + 1; });
  return std::accumulate(seen.begin(), seen.end(), index_t{0});
}

}  // namespace

TEST(every_item_runs_once) {
  for (int threads : {1, 2, 3, 8}) {
    for (index_t count : {0, 1, 2, 7, 64, 1000}) {
      CHECK(sum_of_items(threads, count) == count * (count + 1) / 2);
    }
  }
}

TEST(worker_numbers_are_below_the_thread_count) {
  for (int threads : {1, 2, 5}) {
    std::atomic<int> largest{0};
    parallel_for({threads}, 200, [&](index_t, int worker) {
      int before = largest.load();
      while (worker > before && !largest.compare_exchange_weak(before, worker)) {
      }
    });
    CHECK(largest.load() < threads);
  }
}

TEST(zero_threads_means_the_cores_of_this_process) { CHECK(resolve_threads({}) >= 1); }

TEST(first_exception_reaches_the_caller) {
  for (int threads : {1, 2}) {
    CHECK_THROWS(parallel_for({threads}, 100,
                              [](index_t item, int) {
                                if (item == 42) throw std::runtime_error("item 42");
                              }),
                 std::runtime_error, "item 42");
    CHECK(sum_of_items(threads, 10) == 55);  // and the pool still works
  }
}

TEST(nested_loops_run_inline) {
  std::atomic<int> inner{0};
  parallel_for({2}, 8, [&](index_t, int) { parallel_for({2}, 8, [&](index_t, int) { ++inner; }); });
  CHECK(inner.load() == 64);
}

TEST(many_callers_share_the_pool) {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) wrong += sum_of_items(2, 100) != 5050;
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong.load() == 0);
}

TEST(interrupt_stops_a_long_call) {
  struct Always : Interrupt {
    bool requested() override { return true; }
  } always;
  CHECK_THROWS(
      parallel_for({2, &always}, 100000,
                   [](index_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }),
      Interrupted, "interrupted");
}

#if defined(__unix__) && !defined(__SANITIZE_THREAD__)
TEST(a_forked_child_gets_a_pool_of_its_own) {
  CHECK(sum_of_items(2, 100) == 5050);
  const pid_t child = fork();
  if (child == 0) _exit(sum_of_items(2, 100) == 5050 ? 0 : 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif
