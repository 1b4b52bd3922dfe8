#pragma once

#include "convbasis/types.h"
#include "core/thread_pool.h"

namespace convbasis {

/// Runs task(i, exec_inside) for every head: heads side by side when there are enough of them to
/// fill the threads, otherwise one after another with the threads inside each.
template <class Task>
void for_each_head(const Exec& exec, index_t count, const Task& task) {
  if (count >= 2 * resolve_threads(exec)) {
    parallel_for(exec, count, [&](index_t i, int) { task(i, Exec{1, nullptr}); });
  } else {
    for (index_t i = 0; i < count; ++i) task(i, exec);
  }
}

}  // namespace convbasis
