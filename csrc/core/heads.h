#pragma once

#include "convbasis/types.h"
#include "core/thread_pool.h"

namespace convbasis {

/// Runs task(i, exec_inside) for every head: heads side by side when there are enough of them to
/// fill the threads, otherwise, and for those left over, one after another with the threads inside
/// each.
template <class Task>
void for_each_head(const Exec& exec, index_t count, const Task& task) {
  const index_t threads = resolve_threads(exec);
  const index_t side_by_side = count >= 2 * threads ? count - count % threads : 0;
  if (side_by_side > 0)
    parallel_for(exec, side_by_side, [&](index_t i, int) { task(i, Exec{1, nullptr}); });
  for (index_t i = side_by_side; i < count; ++i) task(i, exec);
}

}  // namespace convbasis
