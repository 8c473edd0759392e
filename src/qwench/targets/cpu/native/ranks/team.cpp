#include "ranks/team.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>

#include "machine/thread_pool.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <unistd.h>
#endif

namespace qwench {
namespace {

constexpr int kSpins = 4000;     // turns before a rank sleeps: a little longer than the gap between two steps
constexpr int kLookEvery = 256;  // turns between two looks for a lost rank
constexpr int kNapMillis = 100;  // at most between two looks while asleep

// std::atomic's own wait is for the threads of one process.
void sleep_while_equal(std::atomic<uint32_t>& value, uint32_t old) {
#if defined(__linux__)
  const timespec nap{0, kNapMillis * 1000000L};
  syscall(SYS_futex, &value, FUTEX_WAIT, old, &nap, nullptr, 0);
#else
  if (value.load(std::memory_order_acquire) == old) usleep(100);
#endif
}

void wake_all(std::atomic<uint32_t>& value) {
#if defined(__linux__)
  syscall(SYS_futex, &value, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
#endif
}

}  // namespace

Team::Team(uint8_t* memory, size_t num_bytes, int rank, std::vector<int> threads)
    : header_(reinterpret_cast<Header*>(memory)),
      next_(memory),
      end_(memory + num_bytes),
      rank_(rank),
      threads_(std::move(threads)) {
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
  if (rank < 0 || rank >= num_ranks()) throw std::invalid_argument("there is no such rank");
  first_thread_ = std::accumulate(threads_.begin(), threads_.begin() + rank, 0);
  num_threads_ = std::accumulate(threads_.begin(), threads_.end(), 0);
  take(sizeof(Header));
}

uint8_t* Team::take(size_t num_bytes) {
  uint8_t* taken = next_;
  const size_t padded = (num_bytes + 4095) / 4096 * 4096;
  if (padded > size_t(end_ - next_)) throw std::bad_alloc();
  next_ += padded;
  return taken;
}

bool Team::barrier() {
  Header& h = *header_;
  const uint32_t generation = h.generation.load(std::memory_order_acquire);
  if (h.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(num_threads_)) {
    h.arrived.store(0, std::memory_order_relaxed);
    h.generation.store(generation + 1, std::memory_order_release);
    return lost_rank() < 0;
  }
  for (int turn = 0; h.generation.load(std::memory_order_acquire) == generation; ++turn) {
    if (turn % kLookEvery == 0 && lost_rank() >= 0) return false;
    take_turn(turn);
  }
  return lost_rank() < 0;
}

void Team::lose(int rank) {
  uint32_t none = 0;
  header_->lost.compare_exchange_strong(none, uint32_t(rank) + 1);
  wake_all(header_->messages);
}

int Team::lost_rank() const { return int(header_->lost.load(std::memory_order_acquire)) - 1; }

void Team::send(int kind) {
  Header& h = *header_;
  h.mail.kind = kind;
  h.done.store(0, std::memory_order_relaxed);
  h.messages.fetch_add(1, std::memory_order_seq_cst);
  if (h.sleepers.load(std::memory_order_seq_cst)) wake_all(h.messages);
}

int Team::receive() {
  Header& h = *header_;
  for (int turn = 0; h.messages.load(std::memory_order_acquire) == seen_; ++turn) {
    if (turn % kLookEvery == 0 && lost_rank() >= 0) return 0;
    if (turn < kSpins) {
      take_turn(turn);
      continue;
    }
    h.sleepers.fetch_add(1, std::memory_order_seq_cst);
    sleep_while_equal(h.messages, seen_);
    h.sleepers.fetch_sub(1, std::memory_order_seq_cst);
    if (lost_rank() >= 0) return 0;
  }
  ++seen_;
  return h.mail.kind;
}

void Team::acknowledge(const std::string& error) {
  Header& h = *header_;
  uint32_t none = 0;
  if (!error.empty() && h.has_error.compare_exchange_strong(none, 1)) {
    const size_t count = std::min(error.size(), sizeof(h.error) - 1);
    std::memcpy(h.error, error.data(), count);
    h.error[count] = 0;
  }
  h.done.fetch_add(1, std::memory_order_acq_rel);
}

std::string Team::wait_for_others() {
  Header& h = *header_;
  for (int turn = 0; h.done.load(std::memory_order_acquire) + 1 < uint32_t(num_ranks()); ++turn) {
    if (turn % kLookEvery == 0 && lost_rank() >= 0) throw std::runtime_error("a rank was lost");
    take_turn(turn);
  }
  const std::string error = h.has_error.load(std::memory_order_acquire) ? h.error : "";
  h.has_error.store(0, std::memory_order_release);
  return error;
}

}  // namespace qwench
