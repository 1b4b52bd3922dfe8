#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "convbasis/error.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace convbasis {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMaxThreads = 1024;
constexpr auto kPollPeriod = std::chrono::milliseconds(50);
/// How long a thread looks for what it waits for before it sleeps: the loops of one call follow
/// each other faster than the system wakes a thread, and so do the calls that one from Python
/// makes.
constexpr auto kLookPeriod = std::chrono::microseconds(500);

/// Whether `is_there` came true in that time.
template <class Condition>
bool looked_for(const Condition& is_there) {
  const auto end = Clock::now() + kLookPeriod;
  do {
    if (is_there()) return true;
    std::this_thread::yield();
  } while (Clock::now() < end);
  return false;
}

/// When this thread last asked an Interrupt: many short calls in a row are asked about too.
thread_local Clock::time_point last_poll{};

/// One parallel_for: shared by the caller and the workers that joined it.
struct Job {
  TaskRef task;
  index_t count;
  int max_workers;
  Interrupt* interrupt;
  std::atomic<index_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable finished;
  int joined = 0;            // guarded by mutex
  std::atomic<int> left{0};  // changed under mutex
  bool closed = false;       // guarded by mutex: nobody may join any more
  std::exception_ptr error;  // guarded by mutex

  Job(TaskRef t, index_t n, int workers, Interrupt* i)
      : task(t), count(n), max_workers(workers), interrupt(i) {}

  void fail(std::exception_ptr what) {
    std::lock_guard lock(mutex);
    if (!error) error = std::move(what);
    stop.store(true, std::memory_order_relaxed);
  }

  // Caller's thread only.
  void poll() {
    if (interrupt == nullptr || stop.load(std::memory_order_relaxed)) return;
    const auto now = Clock::now();
    if (now - last_poll < kPollPeriod) return;
    last_poll = now;
    try {
      if (interrupt->requested())
        fail(std::make_exception_ptr(Interrupted("[convbasis] interrupted by the caller")));
    } catch (...) {
      fail(std::current_exception());
    }
  }

  int join() {
    std::lock_guard lock(mutex);
    if (closed || joined >= max_workers || stop.load(std::memory_order_relaxed)) return -1;
    return joined++;
  }

  void leave() {
    std::lock_guard lock(mutex);
    ++left;
    finished.notify_all();
  }
};

struct Current {
  Job* job = nullptr;
  bool is_caller = false;
  int worker = 0;
};
thread_local Current current;

void run_items(Job& job, int worker, bool is_caller) {
  const Current outer = current;
  current = {&job, is_caller, worker};
  try {
    while (!job.stop.load(std::memory_order_relaxed)) {
      const index_t item = job.next.fetch_add(1, std::memory_order_relaxed);
      if (item >= job.count) break;
      job.task(item, worker);
      if (is_caller) job.poll();
    }
  } catch (...) {
    job.fail(std::current_exception());
  }
  current = outer;
}

/// Inside a task: same thread, but still stoppable through the job around it.
void run_inline(index_t count, TaskRef task) {
  Job& job = *current.job;
  for (index_t item = 0; item < count; ++item) {
    if (job.stop.load(std::memory_order_relaxed)) throw Interrupted("[convbasis] stopped");
    task(item, 0);
    if (current.is_caller) job.poll();
  }
}

class Pool {
 public:
  void offer(const std::shared_ptr<Job>& job, int helpers) {
    {
      std::lock_guard lock(mutex_);
      for (int i = 0; i < helpers; ++i) queue_.push_back(job);
      queued_.store(static_cast<int>(queue_.size()), std::memory_order_relaxed);
      const int wanted = static_cast<int>(queue_.size());
      while (idle_ + starting_ < wanted && start_thread()) {
      }
    }
    wake_.notify_all();
  }

  void withdraw(const std::shared_ptr<Job>& job) {
    std::lock_guard lock(mutex_);
    std::erase(queue_, job);
    queued_.store(static_cast<int>(queue_.size()), std::memory_order_relaxed);
  }

 private:
  /// False when the system has no more threads to give: the callers then do the work.
  bool start_thread() {
    if (threads_ >= kMaxThreads) return false;
    try {
      std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++threads_;
    ++starting_;
    return true;
  }

  void work() {
    std::unique_lock lock(mutex_);
    --starting_;
    for (;;) {
      ++idle_;
      if (queue_.empty()) {
        lock.unlock();
        (void)looked_for([this] { return queued_.load(std::memory_order_relaxed) > 0; });
        lock.lock();
      }
      wake_.wait(lock, [this] { return !queue_.empty(); });
      --idle_;
      const std::shared_ptr<Job> job = std::move(queue_.front());
      queue_.pop_front();
      queued_.store(static_cast<int>(queue_.size()), std::memory_order_relaxed);
      lock.unlock();
      if (const int worker = job->join(); worker >= 0) {
        run_items(*job, worker, false);
        job->leave();
      }
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> queue_;
  std::atomic<int> queued_{0};  // queue_.size(), for a look without the mutex
  int threads_ = 0, idle_ = 0, starting_ = 0;
};

// Never destroyed: threads may be waiting in it when the process ends. A forked child has none of
// the parent's threads and perhaps a locked mutex, so it gets a pool of its own.
std::atomic<Pool*> shared_pool{nullptr};

Pool& pool() {
  Pool* existing = shared_pool.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(
      nullptr, nullptr, [] { shared_pool.store(nullptr, std::memory_order_release); });
  (void)registered;
#endif
  auto fresh = std::make_unique<Pool>();
  if (shared_pool.compare_exchange_strong(existing, fresh.get())) return *fresh.release();
  return *existing;
}

}  // namespace

int resolve_threads(const Exec& exec) {
  if (exec.threads > 0) return std::min(exec.threads, kMaxThreads);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 1024U));
}

namespace {

/// Nobody may touch the task once parallel_for has returned, however it returns.
class Finish {
 public:
  explicit Finish(const std::shared_ptr<Job>& job) : job_(job) {}
  Finish(const Finish&) = delete;
  Finish& operator=(const Finish&) = delete;
  ~Finish() {
    if (job_->max_workers > 1) pool().withdraw(job_);
    std::unique_lock lock(job_->mutex);
    job_->closed = true;
    const int helpers = job_->joined - 1;
    lock.unlock();
    (void)looked_for([&] { return job_->left.load(std::memory_order_acquire) == helpers; });
    lock.lock();
    while (job_->left < helpers) {
      job_->finished.wait_for(lock, kPollPeriod);
      lock.unlock();
      job_->poll();
      lock.lock();
    }
  }

 private:
  std::shared_ptr<Job> job_;
};

}  // namespace

void parallel_for(const Exec& exec, index_t count, TaskRef task) {
  if (count <= 0) return;
  if (current.job != nullptr) {
    run_inline(count, task);
    return;
  }
  const int workers = static_cast<int>(std::min<index_t>(resolve_threads(exec), count));
  const auto job = std::make_shared<Job>(task, count, workers, exec.interrupt);
  {
    const Finish finish(job);
    const int mine = job->join();
    if (workers > 1) pool().offer(job, workers - 1);
    run_items(*job, mine, true);
  }
  // Taken out of the job, which a worker may be the last to drop: the exception ends on this
  // thread.
  std::exception_ptr error;
  {
    const std::lock_guard lock(job->mutex);
    error = std::exchange(job->error, nullptr);
  }
  if (error) std::rethrow_exception(std::move(error));
}

}  // namespace convbasis
