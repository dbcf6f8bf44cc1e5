#include "block_cache.h"

#include <pthread.h>
#include <sys/mman.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "counters.h"

namespace lsnn::cpu {
namespace {

struct OutOfMemory : std::bad_alloc {
  std::string text;
  explicit OutOfMemory(int64_t bytes)
      : text("not enough memory: " + std::to_string(bytes) + " bytes requested") {}
  const char* what() const noexcept override { return text.c_str(); }
};

constexpr int64_t huge_page = 2 << 20;
constexpr int64_t large = 1 << 20;  // smaller blocks are left to malloc

struct Cache {
  std::mutex mutex;
  std::multimap<int64_t, void*> free;            // by size
  std::unordered_map<void*, int64_t> sizes;      // of every large block
  int64_t held = 0;

  Cache() {
    // fork() must not run while another thread holds the mutex: the child's copy would never be
    // unlocked.
    pthread_atfork(lock, unlock, unlock);
  }

  // LSNN_CACHE_MB in bytes; -1 for an invalid value.
  static int64_t requested_limit() {
    const char* requested = std::getenv("LSNN_CACHE_MB");
    if (!requested || !*requested) return int64_t(1024) << 20;
    int64_t mb = -1;
    const char* end = requested + std::strlen(requested);
    const auto read = std::from_chars(requested, end, mb);
    return read.ec != std::errc() || read.ptr != end || mb < 0 || mb > INT64_MAX >> 20 ? -1
                                                                                       : mb << 20;
  }
  // Read at first use, so that the variable can be set after import.
  static int64_t limit() {
    static const int64_t bytes = requested_limit();
    return bytes;
  }
  static void lock();
  static void unlock();
};
Cache& cache = *new Cache;  // never destroyed: tensors may be freed while the process ends
void Cache::lock() { cache.mutex.lock(); }
void Cache::unlock() { cache.mutex.unlock(); }

}  // namespace

void* take_block(int64_t bytes) {
  if (Cache::limit() < 0) {
    const std::string given = std::getenv("LSNN_CACHE_MB") ? std::getenv("LSNN_CACHE_MB") : "";
    throw std::runtime_error("LSNN_CACHE_MB: expected a whole number of megabytes >= 0, got '" +
                             given + "'");
  }
  if (bytes < large) {
    // Whole pages: with unaligned scratch memory the forward pass took up to 1.4 times as long.
    const int64_t boundary = bytes < 4096 ? 128 : 4096;
    void* p = std::aligned_alloc(boundary, (bytes + 128 + boundary - 1) / boundary * boundary);
    if (!p) throw OutOfMemory(bytes);
    return p;
  }
  if (bytes > INT64_MAX / 2) throw OutOfMemory(bytes);
  const int64_t size = (bytes + huge_page - 1) / huge_page * huge_page;
  {
    std::lock_guard lock(cache.mutex);
    auto best = cache.free.lower_bound(size);
    if (best != cache.free.end() && best->first <= size + size / 4 + huge_page) {
      void* p = best->second;
      cache.held -= best->first;
      cache.free.erase(best);
      return p;
    }
  }
  // One huge page more than requested, to align the block; the rest is unmapped.
  char* raw = static_cast<char*>(
      mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (raw == MAP_FAILED) throw OutOfMemory(bytes);
  count(Count::fresh_bytes, size);
  const int64_t before = (huge_page - reinterpret_cast<int64_t>(raw) % huge_page) % huge_page;
  char* p = raw + before;
  if (before) munmap(raw, before);
  if (before < huge_page) munmap(p + size, huge_page - before);
#ifdef MADV_HUGEPAGE
  madvise(p, size, MADV_HUGEPAGE);
#endif
  std::lock_guard lock(cache.mutex);
  cache.sizes[p] = size;
  return p;
}

void give_block(void* block) {
  if (!block) return;
  std::unique_lock lock(cache.mutex);
  const auto known = cache.sizes.find(block);
  if (known == cache.sizes.end()) {
    lock.unlock();
    std::free(block);
    return;
  }
  const int64_t size = known->second;
  if (cache.held + size <= Cache::limit()) {
    cache.free.emplace(size, block);
    cache.held += size;
    return;
  }
  cache.sizes.erase(known);
  lock.unlock();
  munmap(block, size);
}

int64_t cached_bytes() {
  std::lock_guard lock(cache.mutex);
  return cache.held;
}

void empty_cache() {
  std::lock_guard lock(cache.mutex);
  for (auto [size, block] : cache.free) {
    cache.sizes.erase(block);
    munmap(block, size);
  }
  cache.free.clear();
  cache.held = 0;
}

}  // namespace lsnn::cpu
