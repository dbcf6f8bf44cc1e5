// Large blocks of memory that are kept for reuse. Fresh memory costs more than the arithmetic on
// it: every page is cleared when first touched. Blocks lie in huge pages where the system gives
// them, aligned to 128 bytes at least.
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
