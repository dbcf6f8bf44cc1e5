#include "scheduler.h"

#include <algorithm>
#include <cstring>

namespace emulator {

constinit thread_local Thread* current = nullptr;
constinit thread_local Scheduler* active = nullptr;

// ------------------------------------------------------------------------------------- diagnostics
bool same_place(Place a, Place b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || !strcmp(a.file_name(), b.file_name()));
}

void add(std::string& text, const char* part) { text += part; }
void add(std::string& text, size_t number) { text += std::to_string(number); }
void add(std::string& text, Place place) {
  text += std::string(place.file_name()) + ":" + std::to_string(place.line());
}

static void add(std::string& text, uint3 i) {
  text += "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

void add(std::string& text, const Thread& thread) {
  add(text, "block ");
  add(text, thread.block_index);
  add(text, " thread ");
  add(text, thread.thread_index);
}

void add(std::string& text, Lanes lanes) {
  text += "0x";
  for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[lanes.mask >> shift & 15];
}

// The launch ends here: no thread runs again.
void stop() {
  Scheduler& s = *active;
  Task& task = running();
  s.failed = true;
  release(&s.ended);
  current = nullptr;
  switch_fiber(task.fiber, s.main);
  __builtin_unreachable();
}

void fail(const char* what, Place place) { fail_at(place, what); }

// Threads of a block that wait at the same line are listed once.
static std::string describe_deadlock(const Scheduler& s) {
  std::string text = "deadlock: " + std::to_string(s.alive) + " threads wait";
  std::vector<const Task*> listed;
  for (const Task& task : s.tasks) {
    if (!task.waits_in || listed.size() == 8) continue;
    const auto alike = [&task](const Task* other) {
      return other->block == task.block && same_place(other->place, task.place);
    };
    if (std::any_of(listed.begin(), listed.end(), alike)) continue;
    const auto n = std::count_if(s.tasks.begin(), s.tasks.end(), [&](const Task& other) {
      return other.waits_in && alike(&other);
    });
    add(text, "\n  ");
    add(text, task);
    add(text, " in ");
    add(text, task.waits_in);
    add(text, " at ");
    add(text, task.place);
    if (n > 1) text += ", with " + std::to_string(n - 1) + " others of its block";
    listed.push_back(&task);
  }
  return text;
}

// -------------------------------------------------------------------------------------- scheduling
unsigned Scheduler::random_below(unsigned n) {  // xorshift
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return unsigned((random_state >> 32) * n >> 32);
}

Task* Scheduler::next() {
  if (!ready.size()) {
    if (!alive) return nullptr;
    error = describe_deadlock(*this);
    stop();
  }
  if (options.order == Order::random) ready.swap_with_first(random_below(unsigned(ready.size())));
  return ready.pop_front();
}

// Continues with another thread, or with the caller of launch() if none is left. Returns when the
// calling thread is continued.
void Scheduler::run_next() {
  Task& from = running();
  Task* to = next();
  if (to == &from) return;
  stats.switches++;
  current = to;
  switch_fiber(from.fiber, to ? to->fiber : main);
}

// The thread waits for release_all() once it calls run_next(); so does the last one to arrive.
void Scheduler::enlist(Waiters& waiters, const char* operation, Place place) {
  Task& task = running();
  task.before = waiters.last;
  waiters.last = &task;
  task.waits_in = operation;
  task.place = place;
}

// The first to arrive will be the first to run.
void Scheduler::release_all(Waiters& waiters) {
  for (Task* task = waiters.last; task; task = task->before) {
    task->waits_in = nullptr;
    ready.push_front(task);
  }
  waiters.last = nullptr;
  waiters.phase++;
  stats.barriers++;
  spins = 0;
}

void Scheduler::yield(Place place) {
  Task& task = running();
  task.atomics = 0;
  if (++spins > options.spin_limit)
    fail_at(place, "no progress: ", options.spin_limit,
            " yields, and no thread passed a barrier or returned");
  ready.push_back(&task);
  run_next();
}

void Scheduler::end_thread() {
  Task& task = running();
  Warp& warp = *task.warp;
  alive--;
  spins = 0;
  warp.alive &= ~(1u << task.lane);
  for (unsigned open = warp.open; open; open &= open - 1) {
    const WarpOperation& o = warp.operations[__builtin_ctz(open)];
    if (o.mask >> task.lane & 1)
      fail_at(o.place, "a thread returns that the mask of ", o.operation, " names");
  }
  if (!task.copies.empty())
    fail_at(place, "a thread returns that has not waited for its copies to shared memory");
  release(&ended);
  Block& block = *task.block;
  if (task.arrived && task.cluster_phase == block.cluster->waiters.phase) block.cluster->arrived--;
  leave(block.barrier);
  leave(*block.cluster);
  if (shape.cooperative) leave(grid);
  if (!block.barrier.alive) {
    if (!block.late.empty())
      fail_at(block.late[0].place, "a block ends while this store into it is under way");
    end_block(block);
  }
  run_next();
  __builtin_unreachable();
}

}  // namespace emulator
