// A launch: blocks that must be alive at the same time run together, and such sets one after
// another.
#include <stdlib.h>

#include <cstring>

#include "scheduler.h"

namespace emulator {

static Scheduler& own_scheduler() {
  static thread_local Scheduler scheduler;
  return scheduler;
}
Options& options() { return own_scheduler().options; }
Stats& stats() { return own_scheduler().stats; }

void FreeMemory::operator()(unsigned char* p) const { free(p); }

Scheduler::~Scheduler() {
  for (Task& task : tasks) free_stack(task.fiber);
}

// Drops the state of all threads after a failure.
void Scheduler::forget() {
  for (Task& task : tasks) {
    abandon(task.fiber);
    task.waits_in = nullptr;
  }
  blocks.clear();
  clusters.clear();
  warps.clear();
  shared.clear();
  retired.clear();
  grid = {};
}

static unsigned product(dim3 d) { return d.x * d.y * d.z; }

// The error of an invalid launch, or null. Limits are those of compute capability 9.0.
static const char* complaint(const Launch& l) {
  if (!product(l.grid) || !product(l.block)) return "no threads";
  if (l.grid.y > 65535 || l.grid.z > 65535) return "more than 65535 blocks along y or z";
  if (uint64_t(l.grid.x) * l.grid.y * l.grid.z > 0x7fffffff) return "too many blocks";
  if (l.block.x > 1024 || l.block.y > 1024 || product(l.block) > 1024)
    return "more than 1024 threads in a block";
  if (l.block.z > 64) return "a block of more than 64 threads along z";
  const uint64_t of_warp = (uint64_t(l.registers) + 7) / 8 * 8 * 32;  // in units of 256
  if (of_warp * ((product(l.block) + 31) / 32) > 65536)
    return "more than 65536 registers in a block";
  if (l.shared > 227 * 1024) return "more than 227 KiB of shared memory";
  if (!l.cluster || l.cluster > 16) return "a cluster of no or more than 16 blocks";
  if (l.grid.x % l.cluster) return "the grid is not whole clusters along x";
  return nullptr;
}

static uint3 unpack(unsigned i, dim3 size) {
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

static void describe_exception(const char* what) {
  std::string& text = active->error;
  text.clear();
  add(text, active->place);
  add(text, ": exception in the kernel");
  add(text, what ? ": " : "");
  add(text, what ? what : "");
  add(text, ", ");
  add(text, *current);
}

// The first function of each thread, on its own stack.
static void run_thread() {
  try {
    active->body(active->context);
    active->end_thread();
  } catch (const std::exception& e) {
    describe_exception(e.what());
  } catch (...) {
    describe_exception(nullptr);
  }
  stop();
}

static Memory allocate(size_t size) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, size ? size : 1)) throw std::bad_alloc();
  return Memory(static_cast<unsigned char*>(memory));
}

// n blocks from `first_block` on, ready to run.
void Scheduler::prepare(unsigned first_block, unsigned n) {
  const unsigned threads = product(shape.block), n_warps = (threads + 31) / 32;
  // at new addresses ThreadSanitizer sees no order between these blocks and the former ones
  if (watches_order) {
    blocks.clear();
    clusters.clear();
    warps.clear();
    blocks.shrink_to_fit();
    clusters.shrink_to_fit();
    warps.shrink_to_fit();
    for (Memory& memory : shared) retired.push_back(std::move(memory));
    shared.clear();
  }
  if (blocks.size() < n) blocks.resize(n);
  if (clusters.size() < n / shape.cluster) clusters.resize(n / shape.cluster);
  if (warps.size() < size_t(n) * n_warps) warps.resize(size_t(n) * n_warps);
  if (shared_size != shape.shared) shared.clear();
  shared_size = shape.shared;
  while (tasks.size() < size_t(n) * threads) tasks.emplace_back();
  ready.reset(size_t(n) * threads);
  while (shared.size() < n) shared.push_back(allocate(shape.shared));
  for (unsigned b = 0; b < n; b++) {
    open_memory(shared[b].get(), shape.shared);
    if (options.poison) memset(shared[b].get(), 0xFF, shape.shared);
  }

  // Threads start after all of this, which ThreadSanitizer orders before them.
  alive = grid.alive = n * threads;
  for (unsigned b = 0; b < n; b++) {
    Block& block = blocks[b];
    block.shared = shared[b].get();
    block.cluster = &clusters[b / shape.cluster];
    block.barrier.alive = threads;
    block.late.clear();
    if (shape.cluster > 1) block.late.reserve(most_late_stores);
    block.cluster->alive = threads * shape.cluster;
    for (unsigned t = 0; t < threads; t++) {
      Task& task = tasks[size_t(b) * threads + t];
      task.thread_index = unpack(t, shape.block);
      task.block_index = unpack(first_block + b, shape.grid);
      task.block_dim = shape.block;
      task.grid_dim = shape.grid;
      task.lane = t % 32;
      task.cluster_rank = b % shape.cluster;
      task.cluster_size = shape.cluster;
      task.shared = block.shared;
      task.block = &block;
      task.warp = &warps[size_t(b) * n_warps + t / 32];
      task.arrived = false;
      task.atomics = 0;
      task.copies.clear();
      task.groups = 0;
      if (t % 32 == 0)
        task.warp->existing = task.warp->alive = threads - t < 32 ? (1u << (threads - t)) - 1 : ~0u;
      // Linux allows a process 65530 mappings, and a guard page makes two of one
      constexpr size_t guarded = 16384;
      if (!start(task.fiber, run_thread, size_t(b) * threads + t < guarded))
        throw Error("no memory for the stacks of the threads");
      if (options.order == Order::reverse) ready.push_front(&task);
      else ready.push_back(&task);
    }
  }
  stats.threads += size_t(n) * threads;
}

// Other blocks must not use the shared memory of a block that has ended: they read poison, or
// AddressSanitizer reports them. ThreadSanitizer would attribute this write to the kernel.
void Scheduler::end_block(Block& block) {
  if (options.poison && !watches_order && (shape.cluster > 1))
    memset(block.shared, 0xFF, shape.shared);
  close_memory(block.shared, shape.shared);
}

void Scheduler::launch() {
  const unsigned n_blocks = product(shape.grid),
                 together = shape.cooperative ? n_blocks : shape.cluster;
  const unsigned n_sets = n_blocks / together;
  random_state = options.seed * 0x9E3779B97F4A7C15ull | 1;
  spins = 0;
  std::vector<unsigned> shuffled;
  if (options.order == Order::random) {
    for (unsigned i = 0; i < n_sets; i++) shuffled.push_back(i);
    for (unsigned i = n_sets; i > 1; i--) std::swap(shuffled[i - 1], shuffled[random_below(i)]);
  }
  adopt_thread(main);
  for (unsigned i = 0; i < n_sets && !failed; i++) {
    const unsigned set = options.order == Order::random    ? shuffled[i]
                         : options.order == Order::reverse ? n_sets - 1 - i
                                                           : i;
    prepare(set * together, together);
    Task* first = next();
    current = first;
    switch_fiber(main, first->fiber);
  }
  acquire(&ended);  // only now, as the blocks of a launch are not ordered
  retired.clear();
}

void launch(const Launch& shape, void (*body)(const void*), const void* context, Place place) {
  if (active) fail_at(place, "launch() inside a kernel");
  if (const char* what = complaint(shape)) fail_at(place, "invalid launch configuration: ", what);
  Scheduler& s = own_scheduler();
  s.shape = shape;
  s.body = body;
  s.context = context;
  s.place = place;
  s.failed = false;
  s.stats.launches++;
  active = &s;
  try {
    s.launch();
  } catch (...) {
    active = nullptr;
    s.forget();
    throw;
  }
  active = nullptr;
  if (!s.failed) return;
  s.forget();
  throw Error(std::move(s.error));
}

}  // namespace emulator
