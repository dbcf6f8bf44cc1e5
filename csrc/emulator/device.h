// Implementation of cuda.h, and functions for PTX instructions. Called by threads of a kernel.
// `Place` is the calling line of the kernel; functions that wrap these should take and pass one,
// for the diagnostics.
#pragma once
#include <cstring>

#include "emulator.h"

namespace emulator {

struct Thread {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  unsigned lane, cluster_rank, cluster_size;
  unsigned char* shared;
};
// constinit and the attribute: one load instead of a function call.
// the thread that runs
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Thread* current;

// The block's dynamic shared memory, aligned to 128 bytes.
inline unsigned char* shared_memory() { return current->shared; }

// ---------------------------------------------------------------------------------------- barriers
// Barriers wait for the threads that have not returned, as on Volta and later.
enum class Scope { block, cluster, grid };
struct Votes { unsigned yes, threads; };
Votes barrier(Scope, bool vote, const char* operation, Place);

// bar.sync id, threads: of `threads` threads of the block, whole warps. Barrier 0 is the one of
// __syncthreads().
void named_barrier(unsigned id, unsigned threads, Place = Place::current());
// The same with .aligned: all lanes of a warp must call it at the same line.
void named_barrier_aligned(unsigned id, unsigned threads, Place = Place::current());

// barrier.cluster.arrive and .wait, with release and acquire.
void cluster_arrive(Place = Place::current());
void cluster_wait(Place = Place::current());

// The same location in the shared memory of another block of the cluster.
void* map_shared_rank(const void*, unsigned rank, Place);

// --------------------------------------------------------------------------------- warp operations
// The lanes of a mask meet. Only sync_warp orders memory.
void sync_warp(unsigned mask, Place);
unsigned ballot(unsigned mask, bool vote, const char* operation, Place);
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source_lane, const char* operation, Place);
// The instruction mma.m16n8k16 of bfloat16, c (16,8) += a (16,16) b (16,8), with PTX's fragments:
// of lane 4 g + t, a[0] and a[2] have rows g, a[1] and a[3] rows g + 8; a[0], a[1] and b[0] have 2
// t and 2 t + 1 of the 16 that are summed over, the others 2 t + 8 and 2 t + 9; b has column g; c
// has columns 2 t and 2 t + 1 of row g, then of row g + 8. Sums truncate, see add_truncated().
void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place);

// ------------------------------------------------------------------------------------------ memory
// Lets other threads run. A loop that waits for another thread's store must call it, or test with
// an atomic function.
void yield(Place = Place::current());

// Called by all atomic functions: yields at random, and after a fixed number of calls.
void maybe_yield(Place);

// Orders memory for ThreadSanitizer, which knows nothing of fences.
void fence();

// ---------------------------------------------------------------------------- asynchronous copies
// cp.async: 4, 8 or 16 bytes from global into shared memory. They arrive as late as possible, when
// their thread waits for the group; until then the target holds bytes 0xFF. Other threads see them
// after a barrier that follows the wait.
struct Copy {
  void* shared;
  const void* global;
  unsigned bytes;
  uint64_t group;  // of its thread
};
// Limit of a thread's copies in flight; a GPU has none.
inline constexpr unsigned most_copies = 1024;
void begin_copy(const Copy&, Place);
bool arrived_copy(unsigned left, Copy& copy);  // the next one, if there is one

inline void copy_async(void* shared, const void* global, unsigned bytes,
                       Place place = Place::current()) {
  begin_copy({shared, global, bytes, 0}, place);
  memset(shared, 0xFF, bytes);  // here, where sanitizers see it
}
// cp.async.commit_group: the copies since the last one are a group.
void commit_copies();
// cp.async.wait_group: all groups but the `left` newest have arrived.
inline void wait_copies(unsigned left) {
  for (Copy copy; arrived_copy(left, copy);) memcpy(copy.shared, copy.global, copy.bytes);
}

// ---------------------------------------------------------------------------- barriers in memory
// mbarrier: a word of 8 bytes in the shared memory of a block. A phase ends when the number of
// arrivals given to init and the bytes that these announced are complete; then the next phase
// begins. A wait makes the writes of the arriving threads visible, and the counted stores.
void init_mbarrier(uint64_t*, unsigned arrivals, Place = Place::current());
// mbarrier.arrive.expect_tx: of the block's own barrier.
void arrive_mbarrier(uint64_t*, unsigned bytes, Place = Place::current());
void count_bytes(uint64_t*, unsigned bytes, Place);
bool has_passed(const uint64_t*, unsigned parity, Place);

// st.async: 16 bytes into the shared memory of any block of the cluster, counted by a barrier
// there. They arrive immediately, or when a thread waits for that barrier, in any order.
struct Store {
  static constexpr unsigned bytes = 16;
  void* shared;
  uint64_t* mbarrier;
  Place place;
  unsigned char x[bytes];
};
// Limit of late stores into a block; further stores arrive immediately.
inline constexpr unsigned most_late_stores = 2048;
bool delay(const Store&);  // whether the store will be late
bool arrived_store(const uint64_t* mbarrier, unsigned parity, Store&, Place);  // of the late ones

inline void arrive(const Store& store) {
  memcpy(store.shared, store.x, Store::bytes);  // here, where sanitizers see it
  count_bytes(store.mbarrier, Store::bytes, store.place);
}
inline void store_async(void* shared, const void* from, uint64_t* mbarrier,
                        Place place = Place::current()) {
  maybe_yield(place);
  Store store{shared, mbarrier, place, {}};
  memcpy(store.x, from, Store::bytes);
  if (!delay(store)) arrive(store);
}
// mbarrier.try_wait.parity: whether the phase of this parity has ended, 0 for the first one. May be
// false although it has (Options::spurious_in_256).
inline bool passed_mbarrier(const uint64_t* mbarrier, unsigned parity,
                            Place place = Place::current()) {
  maybe_yield(place);
  for (Store store; arrived_store(mbarrier, parity, store, place);) arrive(store);
  return has_passed(mbarrier, parity, place);
}

// Ends the launch with an Error.
[[noreturn]] void fail(const char* what, Place = Place::current());

}  // namespace emulator
