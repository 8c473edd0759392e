// The paged KV cache: memory for the places of all blocks, and where they lie. A block has a place for each layer of a
// group; program/cache_groups.py tells which layers those are. Layouts: kernels/kernel_table.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace qwench {

class KVCache {
 public:
  struct Shape {
    int num_places, num_blocks, block_size, num_kv_heads, head_dim;
    CacheKind kind;
    int padded_dim() const { return (head_dim + 15) / 16 * 16; }
  };

  // Reserves address space; the system gives zeroed pages as they are first written. Throws std::bad_alloc.
  explicit KVCache(const Shape& shape);
  ~KVCache();
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;

  const Shape& shape() const { return shape_; }
  size_t block_stride() const { return block_stride_; }  // keys of all heads, then values of all heads
  size_t head_stride() const { return head_stride_; }
  uint8_t* keys(int place) const { return data_ + place * place_stride_; }
  uint8_t* values(int place) const { return keys(place) + shape_.num_kv_heads * head_stride_; }
  size_t block_bytes() const { return block_stride_ * shape_.num_places; }  // of a block's places together
  void copy_block(int source, int destination);
  void read_block(int block, uint8_t* bytes) const;  // its places one after the other, block_bytes() in all
  void write_block(int block, const uint8_t* bytes);

 private:
  Shape shape_;
  size_t head_stride_, block_stride_, place_stride_, num_bytes_;
  uint8_t* data_;
};

}  // namespace qwench
