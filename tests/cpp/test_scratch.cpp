#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/buffer.h"
#include "core/scratch.h"

using namespace convbasis;

TEST(blocks_are_aligned_and_large_enough) {
  for (const std::size_t bytes : {1, 63, 64, 65, 4096, 1 << 20, (1 << 20) + 1, 5 << 20}) {
    const ScratchBlock block = take_scratch(bytes);
    CHECK(block.capacity >= bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(block.data) % 64 == 0);
    std::fill_n(static_cast<char*>(block.data), block.capacity, char{1});
    give_scratch(block);
  }
  give_scratch({});  // nothing was taken
}

TEST(blocks_that_are_held_do_not_overlap) {
  constexpr std::size_t kBytes = std::size_t{3} << 19;
  for (int round = 0; round < 3; ++round) {  // recycled from the second on
    std::vector<ScratchBlock> held;
    for (int i = 0; i < 20; ++i) held.push_back(take_scratch(kBytes + static_cast<std::size_t>(i)));
    std::sort(held.begin(), held.end(), [](const ScratchBlock& a, const ScratchBlock& b) {
      return std::less<>()(a.data, b.data);
    });
    for (std::size_t i = 1; i < held.size(); ++i)
      CHECK(static_cast<char*>(held[i - 1].data) + held[i - 1].capacity <=
            static_cast<char*>(held[i].data));
    for (const ScratchBlock& block : held) give_scratch(block);
  }
}

TEST(threads_never_share_a_block) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < 50; ++round) {
        const std::size_t bytes = (std::size_t{1} << 20) + static_cast<std::size_t>(round) * 4096;
        const ScratchBlock block = take_scratch(bytes);
        auto* words = static_cast<int*>(block.data);
        const std::size_t count = block.capacity / sizeof(int);
        for (std::size_t i = 0; i < count; i += 1000) words[i] = thread;
        std::this_thread::yield();
        for (std::size_t i = 0; i < count; i += 1000) wrong += words[i] != thread;
        give_scratch(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong.load() == 0);
}

TEST(buffers_move_and_own_their_memory_once) {
  Buffer<double> a(100), b;
  a[99] = 7;
  b = std::move(a);
  CHECK(b.size() == 100 && b[99] == 7);
  const Buffer<double> c(std::move(b));
  CHECK(c.size() == 100 && c[99] == 7);
  CHECK(b.size() == 0 && b.data() == nullptr);  // NOLINT(bugprone-use-after-move)
  CHECK(Buffer<float>(0).data() == nullptr);
}
