#include "block_cache.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>

#include "counters.h"

namespace lsnn::cpu {
namespace {

struct OutOfMemory : std::bad_alloc {
  std::string text;
  explicit OutOfMemory(int64_t bytes) : text("not enough memory: " + std::to_string(bytes) + " bytes were asked for") {}
  const char* what() const noexcept override { return text.c_str(); }
};

constexpr int64_t huge_page = 2 << 20;
constexpr int64_t large = 1 << 20;  // smaller blocks are left to malloc

struct Cache {
  std::mutex mutex;
  std::multimap<int64_t, void*> free;            // by size
  std::unordered_map<void*, int64_t> sizes;      // of every large block
  int64_t held = 0, limit;
  Cache() {
    const char* mb = std::getenv("LSNN_CACHE_MB");
    limit = (mb ? std::atoll(mb) : 1024) << 20;
  }
};
Cache& cache() {  // never destroyed: tensors may be freed while the process ends
  static Cache& c = *new Cache;
  return c;
}

}  // namespace

void* take_block(int64_t bytes) {
  if (bytes < large) {
    // Whole pages: where scratch memory began in the middle of one, the forward pass took up to 1.4 times as long.
    const int64_t boundary = bytes < 4096 ? 128 : 4096;
    void* p = std::aligned_alloc(boundary, (bytes + 128 + boundary - 1) / boundary * boundary);
    if (!p) throw OutOfMemory(bytes);
    return p;
  }
  if (bytes > INT64_MAX / 2) throw OutOfMemory(bytes);
  const int64_t size = (bytes + huge_page - 1) / huge_page * huge_page;
  Cache& c = cache();
  {
    std::lock_guard lock(c.mutex);
    auto best = c.free.lower_bound(size);
    if (best != c.free.end() && best->first <= size + size / 4 + huge_page) {
      void* p = best->second;
      c.held -= best->first;
      c.free.erase(best);
      return p;
    }
  }
  // One huge page more than asked for, so that the block can start on a boundary; the rest is given back.
  char* raw = static_cast<char*>(mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (raw == MAP_FAILED) throw OutOfMemory(bytes);
  count(Count::fresh_bytes, size);
  const int64_t before = (huge_page - reinterpret_cast<int64_t>(raw) % huge_page) % huge_page;
  char* p = raw + before;
  if (before) munmap(raw, before);
  if (before < huge_page) munmap(p + size, huge_page - before);
#ifdef MADV_HUGEPAGE
  madvise(p, size, MADV_HUGEPAGE);
#endif
  std::lock_guard lock(c.mutex);
  c.sizes[p] = size;
  return p;
}

void give_block(void* block) {
  if (!block) return;
  Cache& c = cache();
  std::unique_lock lock(c.mutex);
  const auto known = c.sizes.find(block);
  if (known == c.sizes.end()) {
    lock.unlock();
    std::free(block);
    return;
  }
  const int64_t size = known->second;
  if (c.held + size <= c.limit) {
    c.free.emplace(size, block);
    c.held += size;
    return;
  }
  c.sizes.erase(known);
  lock.unlock();
  munmap(block, size);
}

int64_t cached_bytes() {
  std::lock_guard lock(cache().mutex);
  return cache().held;
}

void empty_cache() {
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  for (auto [size, block] : c.free) {
    c.sizes.erase(block);
    munmap(block, size);
  }
  c.free.clear();
  c.held = 0;
}

}  // namespace lsnn::cpu
