// The threads of a launch that are alive at the same time, what they wait for, and which runs next.
#pragma once
#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"

namespace emulator {

struct Task;

// Threads that wait for the same event.
struct Waiters {
  Task* last = nullptr;  // the last to arrive; links to the others
  // Their addresses identify the event and the next one of the same kind. Two, since threads can
  // reach the next event before others have left this one, but not the one after.
  char clocks[2] = {};
  unsigned phase = 0;
  void* clock() { return &clocks[phase & 1]; }
};

struct Barrier {
  unsigned alive = 0, arrived = 0;  // threads
  unsigned yes = 0;  // of those that arrived
  Votes votes = {};  // of the last phase
  const char* operation = nullptr;  // the first arrival of this phase
  Place place;
  Waiters waiters;
};

struct NamedBarrier {
  unsigned threads = 0, arrived = 0;
  Place place;
  Waiters waiters;
};

// Operands of the lanes of a warp; large enough for all operations.
struct Words { uint64_t word[3]; };
struct Exchanged { Words of[32]; };

// Lanes that meet in one operation. It is in use until each lane has fetched its result, so there
// can be two with the same mask at once, but never more than lanes.
struct WarpOperation {
  unsigned mask = 0, arrived = 0, fetched = 0;  // lanes
  unsigned votes = 0;
  const char* operation = nullptr;
  Place place;
  Waiters waiters;
  Exchanged values;
  WarpOperation() {}  // values are not initialized: most operations have none
};

struct Warp {
  unsigned existing = 0, alive = 0;  // lanes
  unsigned waiting = 0;  // lanes, see require_whole_warps()
  unsigned used = 0, open = 0;  // operations, and those of them that lanes are missing from
  unsigned aligned = 0;  // lanes at an aligned barrier that others have not reached
  Place aligned_place;
  WarpOperation operations[32];
};

struct Block {
  Barrier barrier;
  NamedBarrier named[16];
  Barrier* cluster = nullptr;
  unsigned char* shared = nullptr;
  // Into its shared memory. Fixed capacity, as memory allocated by one CUDA thread and freed by
  // another looks like a race to ThreadSanitizer.
  std::vector<Store> late;
};

// The copies of a thread that have not arrived, in order: a ring that does not grow, see Block.
class CopyQueue {
  std::array<Copy, most_copies> ring;
  size_t begun = 0, arrived = 0;

 public:
  bool empty() const { return begun == arrived; }
  bool full() const { return begun - arrived == ring.size(); }
  void clear() { begun = arrived = 0; }
  const Copy& front() const { return ring[arrived % ring.size()]; }
  void push(const Copy& copy) { ring[begun++ % ring.size()] = copy; }
  void pop() { arrived++; }
};

struct Task : Thread {
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Task* before = nullptr;  // among the Waiters: the previous arrival
  const char* waits_in = nullptr;  // null: it can run
  Place place;
  bool arrived = false;  // at the cluster's barrier, without a wait yet
  unsigned cluster_phase = 0;  // of that barrier when it arrived
  unsigned atomics = 0;  // since its last yield
  CopyQueue copies;
  uint64_t groups = 0;  // of copies, committed so far
  Task() {}  // copies are not initialized
};

// Runnable threads, in order. Released threads go to the front, so that they run ahead as far as
// possible; threads that yield go to the back. A ring.
class ReadyQueue {
  std::vector<Task*> ring = std::vector<Task*>(1);
  size_t first = 0, count = 0;
  Task*& at(size_t i) { return ring[(first + i) & (ring.size() - 1)]; }

 public:
  void reset(size_t capacity) {
    size_t size = ring.size();
    while (size < capacity) size *= 2;
    ring.resize(size);
    first = count = 0;
  }
  size_t size() const { return count; }
  void push_front(Task* task) {
    first--;
    count++;
    at(0) = task;
  }
  void push_back(Task* task) { at(count++) = task; }
  void swap_with_first(size_t i) { std::swap(at(0), at(i)); }
  Task* pop_front() {
    Task* task = at(0);
    first++;
    count--;
    return task;
  }
};

struct FreeMemory { void operator()(unsigned char* p) const; };
using Memory = std::unique_ptr<unsigned char, FreeMemory>;

// Of one OS thread. Tasks, stacks and the rest are reused between launches.
struct Scheduler {
  Options options;
  Stats stats;

  Launch shape;
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  Place place;  // of the call of launch()

  std::deque<Task> tasks;
  std::vector<Block> blocks;
  std::vector<Barrier> clusters;
  std::vector<Warp> warps;
  Barrier grid;
  std::vector<Memory> shared;  // of each of the blocks
  size_t shared_size = 0;
  // of blocks that have ended, where memory must not be used twice in a launch
  std::vector<Memory> retired;

  Fiber main;
  ReadyQueue ready;
  unsigned alive = 0;  // threads that have not returned
  uint64_t random_state = 1;
  uint64_t spins = 0;  // yields since a barrier was passed or a thread returned
  char ended = 0;  // its address identifies the end of all threads
  char fences = 0;  // and for all fences
  bool failed = false;
  std::string error;

  ~Scheduler();
  unsigned random_below(unsigned n);

  void launch();  // launch.cpp
  void prepare(unsigned first_block, unsigned n);
  void forget();
  void end_block(Block&);

  void run_next();  // scheduler.cpp
  Task* next();
  void enlist(Waiters&, const char* operation, Place);
  void release_all(Waiters&);
  void yield(Place);
  [[noreturn]] void end_thread();

  void arrive(Barrier&, bool vote, const char* operation, Place);  // device.cpp
  void complete(Barrier&);
  void leave(Barrier&);
  WarpOperation& join(unsigned mask, const char* operation, Place);
  void meet(WarpOperation&, bool orders);
};

// Of the launch that runs; null: none does.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Scheduler* active;

inline Task& running() { return *static_cast<Task*>(current); }

// ------------------------------------------------------------------------------------- diagnostics
struct Lanes { unsigned mask; };
void add(std::string& text, const char*);
void add(std::string& text, size_t);
void add(std::string& text, Place);
void add(std::string& text, const Thread&);
void add(std::string& text, Lanes);

bool same_place(Place, Place);
[[noreturn]] void stop();  // ends the launch, which throws Scheduler::error

// The text is built here, where its memory is freed: the failing thread's stack is not unwound.
template <class... Parts> [[noreturn]] void fail_at(Place place, const Parts&... parts) {
  {
    std::string text;
    add(text, place);
    add(text, ": ");
    (add(text, parts), ...);
    if (!active) throw Error(text);
    add(text, ", ");
    add(text, *current);
    active->error = std::move(text);
  }
  stop();
}

}  // namespace emulator
