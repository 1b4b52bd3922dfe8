#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "convbasis/attention.h"
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

TEST(exceptions_of_nested_loops_reach_the_caller) {
  for (const int threads : {1, 2, 5}) {
    CHECK_THROWS(parallel_for({threads}, 20,
                              [](index_t outer, int) {
                                parallel_for({2}, 20, [=](index_t inner, int) {
                                  if (outer == 7 && inner == 3) throw std::logic_error("7, 3");
                                });
                              }),
                 std::logic_error, "7, 3");
    CHECK(sum_of_items(threads, 10) == 55);
  }
}

TEST(an_exception_stops_the_items_that_have_not_begun) {
  for (const int threads : {1, 2}) {
    std::atomic<int> ran{0};
    CHECK_THROWS(parallel_for({threads}, 100000,
                              [&](index_t, int) {
                                ++ran;
                                std::this_thread::sleep_for(std::chrono::microseconds(100));
                                throw std::runtime_error("at once");
                              }),
                 std::runtime_error, "at once");
    CHECK(ran.load() <= threads);  // each worker stops at its first
  }
}

TEST(every_exception_of_many_callers_reaches_its_own) {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 20; ++round) {
        try {
          parallel_for({2}, 50, [&](index_t item, int) {
            if (item == 30) throw caller;
          });
          ++wrong;
        } catch (int number) {
          wrong += number != caller;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong.load() == 0);
}

namespace {

/// Asks to stop from the first question on, and remembers who asked.
struct Always : Interrupt {
  bool requested() override {
    ++questions;
    on_caller = on_caller && std::this_thread::get_id() == caller;
    return true;
  }
  std::thread::id caller = std::this_thread::get_id();
  int questions = 0;
  bool on_caller = true;
};

/// Items of a millisecond: a question comes after 50 of them, so some thousands of 100000 are far
/// too many even on a busy machine.
constexpr index_t kItems = 100000;
constexpr int kTooMany = 5000;
void work_a_millisecond() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

}  // namespace

TEST(interrupt_stops_a_long_call) {
  for (const int threads : {1, 2, 5}) {
    Always always;
    std::atomic<int> ran{0};
    CHECK_THROWS(parallel_for({threads, &always}, kItems,
                              [&](index_t, int) {
                                ++ran;
                                work_a_millisecond();
                              }),
                 Interrupted, "interrupted");
    CHECK(ran.load() < kTooMany);
    CHECK(always.questions == 1 && always.on_caller);
  }
}

TEST(interrupt_stops_loops_inside_items) {
  // The caller is soon done with its items and waits; the long loops run inside one item.
  for (const int threads : {1, 2}) {
    Always always;
    std::atomic<int> ran{0};
    CHECK_THROWS(parallel_for({threads, &always}, 2,
                              [&](index_t item, int) {
                                if (item == 0) return;
                                parallel_for({2}, kItems, [&](index_t, int) {
                                  ++ran;
                                  work_a_millisecond();
                                });
                              }),
                 Interrupted, "interrupted");
    CHECK(ran.load() < kTooMany);
    CHECK(always.questions == 1 && always.on_caller);
  }
}

TEST(an_interrupt_that_throws_ends_the_call) {
  struct Thrower : Interrupt {
    bool requested() override { throw std::logic_error("from the question"); }
  } thrower;
  for (const int threads : {1, 2}) {
    std::atomic<int> running{0}, ran{0};
    CHECK_THROWS(parallel_for({threads, &thrower}, kItems,
                              [&](index_t, int) {
                                ++running;
                                ++ran;
                                work_a_millisecond();
                                --running;
                              }),
                 std::logic_error, "from the question");
    CHECK(running.load() == 0);  // nobody still works on what the caller has left
    CHECK(ran.load() < kTooMany);
    CHECK(sum_of_items(threads, 10) == 55);
  }
}

TEST(interrupt_that_does_not_ask_to_stop_changes_nothing) {
  struct Never : Interrupt {
    bool requested() override {
      ++questions;
      return false;
    }
    int questions = 0;
  } never;
  std::atomic<int> ran{0};
  parallel_for({2, &never}, 300, [&](index_t, int) {
    ++ran;
    work_a_millisecond();
  });
  CHECK(ran.load() == 300 && never.questions >= 1);
}

TEST(interrupt_is_asked_during_many_short_calls) {
  // One head after another, each far below the polling period: the whole call is still long.
  constexpr index_t kHeads = 2000, kRows = 160, kDim = 8;
  const std::vector<float> numbers(kRows * kDim, 0.5F);
  std::vector<float> out(kHeads * kRows * kDim);
  const View<const float, 4> shared{numbers.data(), {1, kHeads, kRows, kDim}, {0, 0, kDim, 1}};
  const auto to = contiguous_view<float, 4>(out.data(), {1, kHeads, kRows, kDim});
  Always always;
  // As many threads as heads are wanted, so that heads are not put side by side.
  CHECK_THROWS(exact_attention<float>(shared, shared, shared, to, {}, {}, {}, {kHeads, &always}),
               Interrupted, "interrupted");
}

#if defined(__unix__) && !defined(__SANITIZE_THREAD__)
TEST(a_forked_child_gets_a_pool_of_its_own) {
  CHECK(sum_of_items(2, 100) == 5050);
  const pid_t child = fork();
  if (child == 0) {
    const bool is_right = sum_of_items(2, 100) == 5050;
    const pid_t grandchild = fork();  // and so on
    if (grandchild == 0) _exit(sum_of_items(3, 100) == 5050 ? 0 : 1);
    int status = -1;
    waitpid(grandchild, &status, 0);
    _exit(is_right && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(sum_of_items(2, 100) == 5050);  // and the parent still has its own
}
#endif
