#include "executor/kv_cache.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace qwench {

KVCache::KVCache(const Shape& shape) : shape_(shape) {
  const size_t position_bytes = has_codes(shape.kind) ? code_position_bytes(shape.kind, shape.padded_dim())
                                                      : shape.padded_dim() * (shape.kind == CacheKind::kFp32 ? 4 : 2);
  head_stride_ = position_bytes * shape.block_size;
  block_stride_ = 2 * head_stride_ * shape.num_kv_heads;
  place_stride_ = block_stride_ * shape.num_blocks;
  num_bytes_ = place_stride_ * shape.num_places;
  void* memory = mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, num_bytes_, MADV_HUGEPAGE);
  data_ = static_cast<uint8_t*>(memory);
}

KVCache::~KVCache() { munmap(data_, num_bytes_); }

void KVCache::copy_block(int source, int destination) {
  for (int place = 0; place < shape_.num_places; ++place)
    std::memcpy(keys(place) + destination * block_stride_, keys(place) + source * block_stride_, block_stride_);
}

void KVCache::read_block(int block, uint8_t* bytes) const {
  for (int place = 0; place < shape_.num_places; ++place)
    std::memcpy(bytes + place * block_stride_, keys(place) + block * block_stride_, block_stride_);
}

void KVCache::write_block(int block, const uint8_t* bytes) {
  for (int place = 0; place < shape_.num_places; ++place)
    std::memcpy(keys(place) + block * block_stride_, bytes + place * block_stride_, block_stride_);
}

}  // namespace qwench
