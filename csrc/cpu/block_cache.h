// A cache of large memory blocks. Fresh memory costs more than the arithmetic on it, as every page
// is cleared at first touch. Blocks lie in huge pages where available, aligned to at least 128
// bytes.
#pragma once
#include <cstdint>

namespace lsnn::cpu {

void* take_block(int64_t bytes);   // throws std::bad_alloc
void give_block(void* block);      // from any thread; null is fine
int64_t cached_bytes();            // held in free blocks; at most LSNN_CACHE_MB (default 1024)
void empty_cache();

struct Block {                     // one block for the length of a scope
  void* data = nullptr;
  Block() = default;
  explicit Block(int64_t bytes) : data(take_block(bytes)) {}
  void take(int64_t bytes) {       // once
    data = take_block(bytes);
  }
  ~Block() { give_block(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
};

}  // namespace lsnn::cpu
