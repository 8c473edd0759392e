#include "ranks/link.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "machine/thread_pool.h"

namespace qwench {
namespace {

constexpr int kExchangeTag = 1, kMessageTag = 2;
constexpr size_t kMostBytes = size_t(1) << 30;  // of one MPI message, whose length is an int
// No op takes so long that a host which is alive could be this late.
constexpr std::chrono::seconds kSilence{20};
constexpr int kLookEvery = 1024;  // turns between two looks at the clock
constexpr int kSpins = 20000;     // turns before a host that waits for a message sleeps in between
constexpr std::chrono::microseconds kNap{100};

}  // namespace

Link::Link(const Mpi& mpi, int host, int num_hosts)
    : mpi_(mpi), host_(host), num_hosts_(num_hosts), incoming_(num_hosts) {
  if (host < 0 || host >= num_hosts) throw std::invalid_argument("there is no such host");
  if (host > 0) listen();
}

uint8_t* Link::outgoing(size_t num_bytes) {
  if (outgoing_.size() < num_bytes) outgoing_.resize(num_bytes);
  return outgoing_.data();
}

uint8_t* Link::incoming(int host, size_t num_bytes) {
  if (incoming_[host].size() < num_bytes) incoming_[host].resize(num_bytes);
  return incoming_[host].data();
}

// Everybody sends to everybody: what a host computed has to leave it once for each other one, however it is arranged,
// and one message takes no detour.
bool Link::exchange(const std::vector<size_t>& sizes, To to) {
  for (int step = 1; step < num_hosts_; ++step) {  // each begins with its neighbour, so that nobody is overrun
    const int source = (host_ - step + num_hosts_) % num_hosts_;
    if (to == To::kAll || host_ == 0)
      start_receive(incoming(source, sizes[source]), sizes[source], source, kExchangeTag);
  }
  for (int step = 1; step < num_hosts_; ++step) {
    const int target = (host_ + step) % num_hosts_;
    if (to == To::kAll || target == 0) start_send(outgoing_.data(), sizes[host_], target, kExchangeTag);
  }
  return finish();
}

bool Link::send(int kind, const uint8_t* data, size_t num_bytes) {
  message_.kind = kind;
  message_.num_bytes = num_bytes;
  const size_t first = std::min(num_bytes, sizeof message_.first);
  std::memcpy(message_.first, data, first);
  for (int host = 1; host < num_hosts_; ++host) {
    start_send(&message_, offsetof(Message, first) + first, host, kMessageTag);
    start_send(data + first, num_bytes - first, host, kMessageTag);
  }
  return finish();
}

int Link::take_message(uint8_t* data) {
  const int kind = message_.kind;
  const size_t num_bytes = message_.num_bytes, first = std::min(num_bytes, sizeof message_.first);
  std::memcpy(data, message_.first, first);
  start_receive(data + first, num_bytes - first, 0, kMessageTag);
  if (!finish()) return 0;
  listen();
  return kind;
}

void Link::start_send(const void* data, size_t num_bytes, int host, int tag) {
  using Isend = int (*)(const void*, int, uintptr_t, int, int, uintptr_t, Request*);
  for (size_t at = 0; at < num_bytes; at += kMostBytes) {
    pending_.push_back({{}, host});
    reinterpret_cast<Isend>(mpi_.isend)(static_cast<const uint8_t*>(data) + at,
                                        int(std::min(num_bytes - at, kMostBytes)), mpi_.byte, host, tag, mpi_.comm,
                                        &pending_.back().request);
  }
}

using Irecv = int (*)(void*, int, uintptr_t, int, int, uintptr_t, void*);

void Link::start_receive(void* data, size_t num_bytes, int host, int tag) {
  for (size_t at = 0; at < num_bytes; at += kMostBytes) {
    pending_.push_back({{}, host});
    reinterpret_cast<Irecv>(mpi_.irecv)(static_cast<uint8_t*>(data) + at, int(std::min(num_bytes - at, kMostBytes)),
                                        mpi_.byte, host, tag, mpi_.comm, &pending_.back().request);
  }
}

void Link::listen() {
  next_message_ = {};
  reinterpret_cast<Irecv>(mpi_.irecv)(&message_, sizeof message_, mpi_.byte, 0, kMessageTag, mpi_.comm, &next_message_);
}

bool Link::is_done(Request& request) const {
  using Test = int (*)(Request*, int*, void*);
  alignas(16) uint8_t status[128];
  int done = 0;
  reinterpret_cast<Test>(mpi_.test)(&request, &done, status);
  return done != 0;
}

bool Link::finish() {
  const auto start = std::chrono::steady_clock::now();
  for (Pending& each : pending_)
    for (int turn = 0; !is_done(each.request); ++turn) {
      if (turn % kLookEvery == kLookEvery - 1 && std::chrono::steady_clock::now() - start > kSilence) {
        lost_host_ = each.host;
        return false;
      }
      take_turn(turn);
    }
  pending_.clear();
  return true;
}

void Link::nap(int turn) {
  if (turn < kSpins)
    take_turn(turn);
  else
    std::this_thread::sleep_for(kNap);
}

}  // namespace qwench
