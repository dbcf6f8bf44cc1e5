// Barriers, warp operations and the other functions of device.h.

#include "scheduler.h"

namespace emulator {

// ---------------------------------------------------------------------------------------- barriers
constexpr char arrive_name[] = "cluster_arrive";

// All threads of a block must call the same barrier. For a cluster arrivals of any kind count.
void Scheduler::arrive(Barrier& barrier, bool vote, const char* operation, Place place) {
  if (!barrier.arrived++) {
    barrier.operation = operation;
    barrier.place = place;
  } else if (!same_place(barrier.place, place) && operation != arrive_name &&
             barrier.operation != arrive_name)
    fail_at(place, "divergent barrier: ", operation, " meets ", barrier.operation, " at ",
            barrier.place);
  barrier.yes += vote;
  release(barrier.waiters.clock());
}

void Scheduler::complete(Barrier& barrier) {
  barrier.votes = {barrier.yes, barrier.arrived};
  barrier.arrived = barrier.yes = 0;
  release_all(barrier.waiters);
}

void Scheduler::leave(Barrier& barrier) {
  barrier.alive--;
  if (barrier.arrived && barrier.arrived == barrier.alive) complete(barrier);
}

Votes barrier(Scope scope, bool vote, const char* operation, Place place) {
  Scheduler& s = *active;
  Task& task = running();
  if (scope == Scope::grid && !s.shape.cooperative)
    fail_at(place, "grid.sync() in a launch that is not cooperative");
  if (scope == Scope::cluster && task.arrived)
    fail_at(place, "cluster.sync() between cluster_arrive() and cluster_wait()");
  if (scope == Scope::block && task.block->named[0].arrived)
    fail_at(place, "__syncthreads() while threads wait at named barrier 0");
  Barrier& b = scope == Scope::block     ? task.block->barrier
               : scope == Scope::cluster ? *task.block->cluster
                                         : s.grid;
  void* clock = b.waiters.clock();
  s.arrive(b, vote, operation, place);
  s.enlist(b.waiters, operation, place);
  if (b.arrived == b.alive) s.complete(b);
  s.run_next();
  acquire(clock);
  return b.votes;
}

// Hardware counts warps: if parts of warps complete the count, more threads will arrive.
static void require_whole_warps(const NamedBarrier& b, unsigned id, Place place) {
  const Task* last = b.waiters.last;
  for (const Task* task = last; task; task = task->before) task->warp->waiting = 0;
  for (const Task* task = last; task; task = task->before) task->warp->waiting |= 1u << task->lane;
  for (const Task* task = last; task; task = task->before)
    if (task->warp->waiting != task->warp->alive)
      fail_at(place, "named barrier ", id, ": more threads arrive than the ", b.threads,
              " it counts");
}

// One event for all threads of the barrier; groups must use different numbers.
void named_barrier(unsigned id, unsigned threads, Place place) {
  Scheduler& s = *active;
  Task& task = running();
  if (id > 15) fail_at(place, "named barrier ", id, ": there are 0 to 15");
  if (!threads || threads % 32)
    fail_at(place, "named barrier of ", threads, " threads: not whole warps");
  if (id == 0 && task.block->barrier.arrived)
    fail_at(place, "named barrier 0 while threads wait in __syncthreads()");
  NamedBarrier& b = task.block->named[id];
  if (!b.arrived) {
    b.threads = threads;
    b.place = place;
  }
  if (b.threads != threads)
    fail_at(place, "named barrier ", id, " of ", threads, " threads meets the same of ", b.threads,
            " at ", b.place);
  b.arrived++;
  // a warp counts as 32 threads
  if (task.lane == 0) b.arrived += 32 - unsigned(__builtin_popcount(task.warp->existing));
  void* clock = b.waiters.clock();
  release(clock);
  s.enlist(b.waiters, "named_barrier", place);
  if (b.arrived == b.threads) {
    require_whole_warps(b, id, place);
    b.arrived = 0;
    s.release_all(b.waiters);
  }
  s.run_next();
  acquire(clock);
}

void named_barrier_aligned(unsigned id, unsigned threads, Place place) {
  Warp& warp = *running().warp;
  if (warp.alive != warp.existing)
    fail_at(place, "aligned barrier in a warp of which a thread has returned");
  if (warp.aligned && !same_place(warp.aligned_place, place))
    fail_at(place, "aligned barrier in divergent lanes: others of the warp are at ",
            warp.aligned_place);
  warp.aligned_place = place;
  warp.aligned |= 1u << current->lane;
  if (warp.aligned == warp.existing) warp.aligned = 0;
  named_barrier(id, threads, place);
}

void cluster_arrive(Place place) {
  Scheduler& s = *active;
  Task& task = running();
  Barrier& b = *task.block->cluster;
  if (task.arrived) fail_at(place, "a second cluster_arrive() with no cluster_wait() in between");
  task.arrived = true;
  task.cluster_phase = b.waiters.phase;
  s.arrive(b, false, arrive_name, place);
  if (b.arrived == b.alive) s.complete(b);
}

void cluster_wait(Place place) {
  Scheduler& s = *active;
  Task& task = running();
  Barrier& b = *task.block->cluster;
  if (!task.arrived) fail_at(place, "cluster_wait() without cluster_arrive()");
  task.arrived = false;
  void* clock = &b.waiters.clocks[task.cluster_phase & 1];
  if (task.cluster_phase == b.waiters.phase) {
    s.enlist(b.waiters, "cluster_wait", place);
    s.run_next();
  }
  acquire(clock);
}

// --------------------------------------------------------------------------------- warp operations
// Joins the threads that wait in the same operation, or starts it.
WarpOperation& Scheduler::join(unsigned mask, const char* operation, Place place) {
  const Task& task = running();
  Warp& warp = *task.warp;
  const unsigned lane = 1u << task.lane, lanes = mask & warp.existing;
  if (!(lanes & lane))
    fail_at(place, operation, ": the mask ", Lanes{mask}, " leaves out the lane that calls");
  if (lanes & ~warp.alive)
    fail_at(place, operation, ": the mask ", Lanes{mask}, " names a thread that has returned");
  for (unsigned open = warp.open; open; open &= open - 1) {
    WarpOperation& o = warp.operations[__builtin_ctz(open)];
    if (o.mask == lanes && same_place(o.place, place)) {
      o.arrived |= lane;
      return o;
    }
    if (o.mask & lane && o.arrived & lanes)  // each of the two operations waits for the other
      fail_at(place, operation, " of mask ", Lanes{mask}, " names lanes that wait in ", o.operation,
              " of mask ", Lanes{o.mask}, " at ", o.place);
  }
  const int free = __builtin_ctz(~warp.used);
  warp.used |= 1u << free;
  warp.open |= 1u << free;
  WarpOperation& o = warp.operations[free];
  o.mask = lanes;
  o.arrived = lane;
  o.fetched = 0;
  o.votes = 0;
  o.operation = operation;
  o.place = place;
  return o;
}

// Returns when all lanes have arrived.
void Scheduler::meet(WarpOperation& o, bool orders) {
  Task& task = running();
  void* clock = &o.waiters.clocks[0];
  if (orders) release(clock);
  enlist(o.waiters, o.operation, o.place);
  if (o.arrived == o.mask) {
    task.warp->open &= ~(1u << (&o - task.warp->operations));
    release_all(o.waiters);
  }
  run_next();
  if (orders) acquire(clock);
  o.fetched |= 1u << task.lane;
  if (o.fetched == o.mask) task.warp->used &= ~(1u << (&o - task.warp->operations));
}

void sync_warp(unsigned mask, Place place) {
  active->meet(active->join(mask, "__syncwarp", place), true);
}

// The results stay valid after meet(): no other thread runs before they are read.
unsigned ballot(unsigned mask, bool vote, const char* operation, Place place) {
  WarpOperation& o = active->join(mask, operation, place);
  o.votes |= unsigned(vote) << current->lane;
  active->meet(o, false);
  return o.votes;
}

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source_lane, const char* operation,
                 Place place) {
  WarpOperation& o = active->join(mask, operation, place);
  if (source_lane > 31 || !(o.mask >> source_lane & 1))
    fail_at(place, operation, " reads lane ", source_lane, ", which its mask ", Lanes{mask},
            " leaves out");
  o.values.of[current->lane].word[0] = value;
  active->meet(o, false);
  return o.values.of[source_lane].word[0];
}

// ------------------------------------------------------------------------------------------ memory
void yield(Place place) { active->yield(place); }

void maybe_yield(Place place) {
  // a loop of atomic functions that waits for another thread would never end
  constexpr unsigned many = 100;
  Scheduler& s = *active;
  if (++running().atomics > many) s.yield(place);
  else if (s.options.yield_in_256 && s.random_below(256) < s.options.yield_in_256) {
    s.ready.push_back(&running());
    s.run_next();
  }
}

// All fences are ordered, which is more than CUDA guarantees: a missing fence is detected, but not
// always a useless one.
void fence() {
  acquire(&active->fences);
  release(&active->fences);
}

void begin_copy(const Copy& copy, Place place) {
  const Scheduler& s = *active;
  Task& task = running();
  const auto offset = size_t(static_cast<const unsigned char*>(copy.shared) - task.shared);
  if (copy.bytes != 4 && copy.bytes != 8 && copy.bytes != 16)
    fail_at(place, "copy of ", copy.bytes, " bytes: there are 4, 8 and 16");
  if (reinterpret_cast<uintptr_t>(copy.global) % copy.bytes || offset % copy.bytes)
    fail_at(place, "copy of ", copy.bytes, " bytes: not on a boundary of its size");
  if (offset > s.shape.shared || s.shape.shared - offset < copy.bytes)
    fail_at(place, "copy to an address outside the block's shared memory");
  if (task.copies.full())
    fail_at(place, "more than ", most_copies, " copies of a thread are under way");
  Copy waiting = copy;
  waiting.group = task.groups;
  task.copies.push(waiting);
}
void commit_copies() { running().groups++; }
bool arrived_copy(unsigned left, Copy& copy) {
  Task& task = running();
  if (task.copies.empty() || task.copies.front().group + left >= task.groups) return false;
  copy = task.copies.front();
  task.copies.pop();
  return true;
}

// ---------------------------------------------------------------------------- barriers in memory
// Layout of the word of an mbarrier.
struct MemoryBarrier {
  static constexpr unsigned char made = 0xA5;
  int32_t bytes;  // expected bytes that have not arrived; < 0: bytes that arrived early
  unsigned char arrivals, missing;  // threads of a phase, and those that have not arrived
  unsigned char parity, mark;
};
static_assert(sizeof(MemoryBarrier) == sizeof(uint64_t));

// The address that identifies a phase; reused two phases later.
static void* clock_of(const uint64_t* at, unsigned parity) {
  return reinterpret_cast<char*>(const_cast<uint64_t*>(at)) + parity;
}
static MemoryBarrier read_mbarrier(const uint64_t* at, Place place) {
  MemoryBarrier b;
  memcpy(&b, at, sizeof b);
  if (b.mark != MemoryBarrier::made) fail_at(place, "mbarrier that init_mbarrier() has not made");
  return b;
}
static void write_mbarrier(uint64_t* at, MemoryBarrier& b, Place place) {
  constexpr int32_t most = (1 << 20) - 1;
  if (b.bytes < -most || b.bytes > most)
    fail_at(place, "mbarrier: more than 2^20 - 1 bytes are expected or came before");
  if (b.missing == 0 && b.bytes == 0) {
    b.missing = b.arrivals;
    b.parity ^= 1;
    active->spins = 0;
  }
  memcpy(at, &b, sizeof b);
}
void init_mbarrier(uint64_t* at, unsigned arrivals, Place place) {
  if (arrivals < 1 || arrivals > 255 || reinterpret_cast<uintptr_t>(at) % 8)
    fail_at(place, "mbarrier of ", arrivals, " threads: expected 1 to 255, and 8 bytes' boundary");
  MemoryBarrier b{0, (unsigned char)arrivals, (unsigned char)arrivals, 0, MemoryBarrier::made};
  memcpy(at, &b, sizeof b);
}
void arrive_mbarrier(uint64_t* at, unsigned bytes, Place place) {
  MemoryBarrier b = read_mbarrier(at, place);
  if (!b.missing) fail_at(place, "mbarrier: more threads arrive in a phase than it was made for");
  release(clock_of(at, b.parity));
  b.missing--;
  b.bytes += (int32_t)bytes;
  write_mbarrier(at, b, place);
}
bool has_passed(const uint64_t* at, unsigned parity, Place place) {
  Scheduler& s = *active;
  if (read_mbarrier(at, place).parity == parity) return false;
  if (s.options.spurious_in_256 && s.random_below(256) < s.options.spurious_in_256) return false;
  acquire(clock_of(at, parity));
  return true;
}
void count_bytes(uint64_t* at, unsigned bytes, Place place) {
  MemoryBarrier b = read_mbarrier(at, place);
  release(clock_of(at, b.parity));
  b.bytes -= (int32_t)bytes;
  write_mbarrier(at, b, place);
}

// The block of the running thread's cluster that has the address.
static Block& block_of(const void* address, Place place) {
  const Task& task = running();
  Block* first = task.block - task.cluster_rank;
  for (Block* block = first; block < first + task.cluster_size; block++)
    if (address >= block->shared && address < block->shared + active->shape.shared) return *block;
  fail_at(place, "store to an address outside the shared memory of the cluster");
}
// A late store is ordered after its sender's earlier operations, and not after those of other
// senders: its phase knows the sender, and the thread that lets it arrive has waited for the phase
// before.
bool delay(const Store& store) {
  if (reinterpret_cast<uintptr_t>(store.shared) % Store::bytes)
    fail_at(store.place, "store of ", Store::bytes, " bytes: not on a boundary of its size");
  Block& to = block_of(store.shared, store.place);
  Scheduler& s = *active;
  if (to.late.size() == to.late.capacity() || s.random_below(256) >= s.options.late_in_256)
    return false;
  release(clock_of(store.mbarrier, read_mbarrier(store.mbarrier, store.place).parity));
  to.late.push_back(store);
  return true;
}
// A random number of stores, eight on average, so that a phase arrives in parts.
bool arrived_store(const uint64_t* at, unsigned parity, Store& store, Place place) {
  std::vector<Store>& late = running().block->late;
  Scheduler& s = *active;
  if (late.empty() || read_mbarrier(at, place).parity != parity || !s.random_below(8)) return false;
  const size_t n = late.size(), begin = s.random_below(unsigned(n));
  for (size_t i = 0; i < n; i++) {
    Store& found = late[(begin + i) % n];
    if (found.mbarrier != at) continue;
    store = found;
    found = late.back();
    late.pop_back();
    return true;
  }
  return false;
}

void* map_shared_rank(const void* address, unsigned rank, Place place) {
  const Scheduler& s = *active;
  const Task& task = running();
  const size_t offset = size_t(static_cast<const unsigned char*>(address) - task.shared);
  if (rank >= task.cluster_size)
    fail_at(place, "map_shared_rank() of block ", rank, " in a cluster of ", task.cluster_size);
  if (offset >= s.shape.shared)
    fail_at(place, "map_shared_rank() of an address outside the block's shared memory");
  // blocks of a cluster are adjacent
  const Block& peer = task.block[int(rank) - int(task.cluster_rank)];
  if (!peer.barrier.alive)
    fail_at(place, "map_shared_rank() of block ", rank, " of the cluster, which has ended");
  return peer.shared + offset;
}

}  // namespace emulator
