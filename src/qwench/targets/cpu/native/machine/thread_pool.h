// A persistent pool: one parallel region per call, barriers inside it that cost about a microsecond.
#pragma once
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace qwench {

// One turn of a loop that waits for another thread: spins at first, then lets others run.
void take_turn(int turn);

// All threads of a region meet here. Spins for a while, then sleeps, so that more threads than cores still progress.
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}
  void wait();

 private:
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  // Runs work(thread) on every thread, the caller as thread 0; returns when all are done. `work` must not throw. Throws
  // std::runtime_error in a forked child.
  void run(const std::function<void(int)>& work);
  // Within `run`: waits for all threads.
  void barrier() { barrier_.wait(); }

 private:
  void serve(int thread);
  void stop();

  const int num_threads_;
  Barrier barrier_;
  alignas(64) std::atomic<uint32_t> job_{0};
  std::atomic<bool> stop_{false};
  const int owner_;  // process that the threads belong to
  const std::function<void(int)>* work_ = nullptr;
  std::vector<std::thread> threads_;
};

// The share of `thread` when `count` items are cut into contiguous, nearly equal parts.
struct Range {
  int begin, end;
};
inline Range static_share(int count, int thread, int num_threads) {
  return {int(int64_t(count) * thread / num_threads), int(int64_t(count) * (thread + 1) / num_threads)};
}

}  // namespace qwench
