// The cache of memory blocks, with one thread and with several.
#pragma once
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "../../cpu/block_cache.h"
#include "../check.h"

namespace lsnn::test {

inline void check_block_cache() {  // main() has set its limit to 64 MB
  at_hand = "block cache";
  const int64_t MB = 1 << 20;
  cpu::give_block(nullptr);
  char* block = static_cast<char*>(cpu::take_block(5 * MB));
  std::memset(block, 1, 5 * MB);
  cpu::give_block(block);
  check(cpu::cached_bytes() >= 5 * MB, "a large block is kept");
  void* much_smaller = cpu::take_block(MB);
  check(much_smaller != block, "a large block is no answer to a small request");
  check(cpu::take_block(5 * MB - 1000) == block && cpu::cached_bytes() == 0,
        "a block is used again");
  cpu::give_block(much_smaller);
  cpu::give_block(block);
  std::vector<void*> blocks(12);
  for (void*& p : blocks) p = cpu::take_block(8 * MB);
  for (void* p : blocks) cpu::give_block(p);
  check(cpu::cached_bytes() > 32 * MB && cpu::cached_bytes() <= 64 * MB, "the limit is held");

  // Threads take blocks, sign both ends and leave them for another thread to read the signatures
  // and give the block back.
  std::atomic<uint64_t*> shelf[8] = {};
  std::atomic<int> broken{0};
  auto read_and_give = [&](uint64_t* p) {
    if (p && p[p[0] - 1] != ~(uint64_t)p) broken++;
    cpu::give_block(p);
  };
  auto work = [&](int thread) {
    for (int i = 0; i < 400; i++) {
      const uint64_t n = uint64_t(std::exp2(drawn(thread, i, 1, 20)));  // 16 bytes to 8 MB
      auto* p = static_cast<uint64_t*>(cpu::take_block(n * 8));
      if ((uintptr_t)p % 128) broken++;
      p[0] = n;
      p[n - 1] = ~(uint64_t)p;
      if (i % 50 == 0) cpu::empty_cache();
      read_and_give(shelf[i % 8].exchange(p));
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) threads.emplace_back(work, i);
  for (std::thread& t : threads) t.join();
  for (auto& p : shelf) read_and_give(p);
  check(broken == 0, "threads find their own signatures in aligned blocks");
  cpu::empty_cache();
  check(cpu::cached_bytes() == 0, "an emptied cache holds nothing");
}

}  // namespace lsnn::test
