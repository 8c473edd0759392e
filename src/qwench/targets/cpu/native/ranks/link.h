// Hosts: processes that share no memory, on one machine or several, whose ranks compute each step together. They are
// joined by MPI, whose functions are called by address, so that this library needs no MPI to be built or loaded. Knows
// nothing of ops.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace qwench {

// Of the MPI that the process has loaded: addresses of functions, and handles as its C interface has them. Handles are
// pointers in Open MPI and ints in MPICH; both travel in the register of a uintptr_t.
struct Mpi {
  uintptr_t isend, irecv, test;
  uintptr_t comm, byte;
};

class Link {
 public:
  Link(const Mpi& mpi, int host, int num_hosts);

  int host() const { return host_; }
  int num_hosts() const { return num_hosts_; }

  // What this host sends in `exchange`, and what it has received from another: at least so many bytes.
  uint8_t* outgoing(size_t num_bytes);
  uint8_t* incoming(int host, size_t num_bytes);
  enum class To { kAll, kHost0 };
  // sizes: bytes that each host sends, this one included. Every host has to call it. False when a host was lost.
  bool exchange(const std::vector<size_t>& sizes, To to);

  // Host 0: a message for all others. kind: above 0. False when a host was lost.
  bool send(int kind, const uint8_t* data, size_t num_bytes);
  // Others: waits for the next message and returns its kind; `data` has room for the longest. `is_over` is asked now
  // and then, and ends it with 0.
  template <class IsOver>
  int receive(uint8_t* data, IsOver is_over);

  int lost_host() const { return lost_host_; }  // that didn't answer; -1: none

 private:
  // Room for what any MPI calls a request or a status.
  struct alignas(16) Request {
    uint8_t bytes[16] = {};
  };
  struct Message {
    int32_t kind = 0;
    uint64_t num_bytes = 0;
    uint8_t first[16 << 10];  // the others follow by themselves
  };

  void start_send(const void* data, size_t num_bytes, int host, int tag);
  void start_receive(void* data, size_t num_bytes, int host, int tag);
  bool finish();  // what was started
  bool is_done(Request& request) const;
  void listen();
  int take_message(uint8_t* data);
  static void nap(int turn);

  const Mpi mpi_;
  const int host_, num_hosts_;
  int lost_host_ = -1;
  std::vector<uint8_t> outgoing_;
  std::vector<std::vector<uint8_t>> incoming_;
  struct Pending {
    Request request;
    int host;
  };
  std::vector<Pending> pending_;
  Message message_;
  Request next_message_;
};

template <class IsOver>
int Link::receive(uint8_t* data, IsOver is_over) {
  for (int turn = 0; !is_done(next_message_); ++turn) {
    if (is_over()) return 0;
    nap(turn);
  }
  return take_message(data);
}

}  // namespace qwench
