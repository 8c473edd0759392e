// Ranks: processes of one machine that compute each step together. What they share is memory: activations lie in it, so
// that what one rank computes the others see after a barrier; and a mailbox, by which rank 0 tells the others what to
// do. Knows nothing of ops.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace qwench {

class Team {
 public:
  // memory: zeros at first, mapped by all ranks. threads: of each rank.
  Team(uint8_t* memory, size_t num_bytes, int rank, std::vector<int> threads);

  int rank() const { return rank_; }
  int num_ranks() const { return int(threads_.size()); }
  int first_thread() const { return first_thread_; }  // of this rank, among all
  int num_threads() const { return num_threads_; }    // of all ranks

  // The next `num_bytes` of the memory, the same in all ranks that ask in the same order. Throws std::bad_alloc.
  uint8_t* take(size_t num_bytes);

  // Called by every thread of every rank. False when a rank was lost, and at once from then on.
  bool barrier();
  // A rank can't go on: all barriers and waits end.
  void lose(int rank);
  int lost_rank() const;  // -1: none

  // Rank 0: what lies in the mailbox becomes a message to the others. kind: above 0.
  void send(int kind);
  // Others: waits for the next message; 0 when a rank was lost. Valid until the next barrier or `acknowledge`.
  int receive();
  const uint8_t* mail() const { return mail_; }
  uint8_t* mail() { return mail_; }

  // A message that isn't a step: the others say that they are done, and perhaps why they couldn't.
  void acknowledge(const std::string& error);
  // Rank 0: waits for all of them, and returns the first error, or "". Throws std::runtime_error when a rank was lost.
  std::string wait_for_others();

  void set_mailbox(uint8_t* mail, size_t num_bytes) { mail_ = mail, mail_bytes_ = num_bytes; }
  size_t mail_bytes() const { return mail_bytes_; }

  // Memory for what ranks that share no activations give each other, between barriers.
  void set_window(uint8_t* window, size_t num_bytes) { window_ = window, window_bytes_ = num_bytes; }
  uint8_t* window() const { return window_; }
  size_t window_bytes() const { return window_bytes_; }

 private:
  struct Mail {
    int kind;
  };
  struct Header {
    alignas(64) std::atomic<uint32_t> arrived;
    alignas(64) std::atomic<uint32_t> generation;
    alignas(64) std::atomic<uint32_t> lost;      // rank + 1
    alignas(64) std::atomic<uint32_t> messages;  // so far
    alignas(64) std::atomic<uint32_t> sleepers;
    alignas(64) std::atomic<uint32_t> done;  // ranks that have acknowledged
    Mail mail;
    char error[1024];
    std::atomic<uint32_t> has_error;
  };

  Header* header_;
  uint8_t *next_, *end_, *mail_ = nullptr, *window_ = nullptr;
  int rank_, first_thread_ = 0, num_threads_ = 0;
  std::vector<int> threads_;
  size_t mail_bytes_ = 0, window_bytes_ = 0;
  uint32_t seen_ = 0;
};

}  // namespace qwench
