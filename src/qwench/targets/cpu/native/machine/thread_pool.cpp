#include "machine/thread_pool.h"

#include <unistd.h>

#include <stdexcept>

#include "machine/floating_point.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwench {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Long enough for the gap between two ops or two steps (tens of microseconds), short enough to be no burden when idle.
constexpr int kSpins = 4000;

void wait_while_equal(std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

void take_turn(int turn) {
  if (turn < kSpins)
    pause();
  else
    std::this_thread::yield();
}

void Barrier::wait() {
  if (num_threads_ == 1) return;
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    // Sequentially consistent, lest the look for sleepers in notify_all be done before the store is seen.
    generation_.store(generation + 1, std::memory_order_seq_cst);
    generation_.notify_all();
  } else {
    wait_while_equal(generation_, generation);
  }
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), barrier_(num_threads), owner_(getpid()) {
  try {
    for (int t = 1; t < num_threads; ++t) threads_.emplace_back([this, t] { serve(t); });
  } catch (...) {  // the system refuses a thread: the others must be joined before their handles go
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  if (getpid() != owner_) {  // a forked child has the handles, not the threads
    for (auto& thread : threads_) thread.detach();
    return;
  }
  stop_.store(true, std::memory_order_release);
  job_.fetch_add(1, std::memory_order_seq_cst);
  job_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(int)>& work) {
  if (getpid() != owner_) throw std::runtime_error("the model was loaded before a fork; load it in the child");
  work_ = &work;
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  {
    const KernelFloatingPoint mode;
    work(0);
  }
  barrier_.wait();
}

void ThreadPool::serve(int thread) {
  const KernelFloatingPoint mode;
  uint32_t seen = 0;
  while (true) {
    wait_while_equal(job_, seen);
    seen += 1;
    if (stop_.load(std::memory_order_acquire)) return;
    (*work_)(thread);
    barrier_.wait();
  }
}

}  // namespace qwench
