#pragma once

#include <memory>
#include <type_traits>

#include "convbasis/types.h"

namespace convbasis {

/// Non-owning reference to a callable (item, worker): valid while the callable lives.
class TaskRef {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
  TaskRef(const F& callable)  // NOLINT(google-explicit-constructor): a reference, like string_view
      : object_(std::addressof(callable)), call_([](const void* object, index_t item, int worker) {
          (*static_cast<const F*>(object))(item, worker);
        }) {}
  void operator()(index_t item, int worker) const { call_(object_, item, worker); }

 private:
  const void* object_;
  void (*call_)(const void*, index_t, int);
};

/// Threads a call may use, at most 1024: exec.threads, or the cores of this process when it is 0.
[[nodiscard]] int resolve_threads(const Exec& exec);

/// Runs task(item, worker) for every item in [0, count) on up to resolve_threads(exec) threads, the
/// caller among them, and returns when all are done. worker is in [0, resolve_threads(exec)).
///
/// Items must be independent of each other and of worker, so that results do not depend on the
/// number of threads. Items should take well under a second: between them the caller asks
/// exec.interrupt. Called from inside a task it runs inline. The first exception is rethrown.
/// Threads are started lazily, shared by all calls, and started anew in a forked child; when the
/// system gives no more of them, fewer do the work.
void parallel_for(const Exec& exec, index_t count, TaskRef task);

}  // namespace convbasis
