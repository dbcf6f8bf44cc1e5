// Threads that run the tiles of a pass: one for each tile, or a team for each where there are fewer
// tiles than threads. Independent of the instruction set.
//
// A scheduler (Parallel) runs teams * members bodies in any order, maybe one after the other on one
// thread. So a body must never wait for one that has not started: the members of a team are the
// bodies that arrive while its first one, the leader, waits for them.
//
// Invariants of a team:
//   I1  state_ counts arrivals, and holds `closed` once the leader has stopped waiting. What
//       arrived before that are the members, numbered 0 (the leader), 1, ..., n - 1.
//   I2  members_ changes once, from 0 to n, or to -1 if there is no scratch memory.
//   I3  The scratch memory exists while any member may use it.
//
//   leader                      member 1                     late
//     state_++       gives 0
//     wait for patience           state_++       gives 1
//     state_ |= closed, n = 2     wait for members_ != 0
//     take scratch memory           .                          state_++   gives closed + 2
//     members_ = 2  ------------->  .                          return
//     body(0 of 2) <- barriers -> body(1 of 2)
//     last barrier <------------> last barrier
//     free scratch memory         return
//
// Proof, for a body() that does not throw and meets as many barriers in each member:
//   I1, I2. Both operations on state_ are atomic: a body reads a number without `closed`, and the
//   leader's fetch_or counts it, or a number with `closed`, and it returns. Only the leader writes
//   members_.
//   No deadlock. The leader waits no longer than `patience`. A member arrived after the leader,
//   which is running, then, and writes members_ in any case. At a barrier only members wait, and
//   all of them have started.
//   Barrier (barrier.h). A member reads `phase` before it arrives, and `phase` changes only after
//   the last arrival, so it is that of this barrier. The last member clears `arrived` before it
//   advances `phase`, hence before any member arrives at the next barrier.
//   I3. scratch_ is written before the release of members_, and read after its acquire. Each member
//   uses the memory before its last barrier, and the leader frees it behind that. The team itself,
//   with its barrier, outlives all bodies: parallel_for() returns after the last.
//   Each task runs in one team: task k in team k % teams, where a lone thread may exchange its
//   number with another team (`next`). Every team has a leader, so a team runs even if all others
//   are late.
//   Results do not depend on the number of members: each number of a result is computed by one of
//   them, in an order of sums that is the same for all (tile.h; python_tests/operators/test_teams).
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

#include "block_cache.h"
#include "pack.h"

namespace lsnn::cpu {
namespace {

// Number of teams, threads of a team, how long the first waits for the others, and whether tasks
// are sorted by descending length.
struct Formation {
  int64_t teams, members;
  std::chrono::microseconds patience{200};  // a sleeping thread wakes within tens
  bool descending = false;
};

class Team {
 public:
  // Runs body(member) on this thread if it is in time to be a member.
  template <class F> void join(const Formation& how, const ScratchBytes& bytes,
                               const Interrupt& interrupt, const F& body) {
    const int64_t index = state_.fetch_add(1);
    if (index == 0) return lead(how, bytes, interrupt, body);
    if (index & closed) return;
    while (!members_.load(std::memory_order_acquire)) std::this_thread::yield();
    if (members_ > 0) run(index, bytes, interrupt, body);
  }

 private:
  static constexpr int64_t closed = int64_t(1) << 32;
  std::atomic<int64_t> state_{0};  // arrivals, and `closed`
  std::atomic<int64_t> members_{0};  // 0: not known yet; -1: no scratch memory
  Barrier barrier_;
  void* scratch_ = nullptr;

  template <class F> void lead(const Formation& how, const ScratchBytes& bytes,
                               const Interrupt& interrupt, const F& body) {
    using Clock = std::chrono::steady_clock;
    for (const auto end = Clock::now() + how.patience; state_ < how.members && Clock::now() < end;)
      std::this_thread::yield();
    const int64_t members = state_.fetch_or(closed);
    try {
      const Block scratch(bytes.shared + members * bytes.own);
      scratch_ = scratch.data;
      members_.store(members, std::memory_order_release);
      run(0, bytes, interrupt, body);
    } catch (...) {
      if (!members_) members_ = -1;
      throw;
    }
  }
  template <class F> void run(int64_t index, const ScratchBytes& bytes, const Interrupt& interrupt,
                              const F& body) {
    char* shared = (char*)scratch_;
    char* own = shared + bytes.shared + index * bytes.own;
    const Member member{index,  members_, &barrier_, std::this_thread::yield,
                        shared, own,      interrupt};
    body(member);
    arrive_and_wait(member);
  }
};

// Runs body(task, member) for each task, on all members of one team.
template <class F>
void in_teams(Parallel parallel, const Formation& how, int64_t tasks, const ScratchBytes& bytes,
              const F& body) {
  std::vector<Team> teams(how.teams);
  std::atomic<int64_t> next{0};
  parallel_for(parallel, how.teams * how.members, [&](int64_t i) {
    const int64_t team = i / how.members;
    teams[team].join(how, bytes, parallel.interrupt, [&](const Member& member) {
      // Tasks in order: the scheduler may give a thread adjacent indices, the longest tasks.
      const int64_t first = how.descending && how.members == 1 ? next++ : team;
      for (int64_t task = first; task < tasks; task += how.teams) body(task, member);
    });
  });
}

// Nanoseconds of a barrier of two threads: 50 to 500, depending on shared caches. Measured once;
// infinite where threads cannot run concurrently.
inline double barrier_ns(Parallel parallel) {
  static std::atomic<double> known{0};
  static std::atomic<int> trials{0};
  if (known) return known;
  constexpr int n = 200;
  constexpr double never = 1e300;
  double best = never;
  if (trials++ >= 3) return never;
  for (int trial = 0; trial < 3; trial++)
    in_teams(parallel, {1, 2}, 1, {0, 0}, [&](int64_t, const Member& member) {
      arrive_and_wait(member);
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < n; i++) arrive_and_wait(member);
      const std::chrono::duration<double, std::nano> spent =
          std::chrono::steady_clock::now() - start;
      if (member.index == 0 && member.members == 2) best = std::min(best, spent.count() / n);
    });
  if (best < never) known = best;
  return best;
}

// Number of steps, nanoseconds of a step on one thread, and its bytes that other members read.
struct Work { double steps, ns, bytes; };

// The fastest formation for `tasks` tiles, by the time of the busiest team. A member has multiples
// of `pad` neurons; writing a cache line that another member has read takes about a fifth of a
// barrier.
inline Formation formation(Parallel parallel, int64_t tasks, const Layer& l, const Work& work) {
  const int64_t units = padded(l.N) / pad;
  auto teams_of = [&](int64_t members) {
    return std::max<int64_t>(1, std::min(tasks, parallel.threads / members));
  };
  if (l.sizes.whole_rows) return {tasks, 1};
  if (const int64_t requested = l.options.team_size) {
    Formation how{requested > 1 ? teams_of(requested) : tasks, std::min(requested, units)};
    // The requested team, also on a loaded machine, if there are enough threads.
    if (parallel.threads >= how.teams * how.members) how.patience = std::chrono::seconds(1);
    return how;
  }
  constexpr double worth_asking_ns = 500;  // the slowest barrier
  constexpr double waking_ns = 50e3;  // until all threads have arrived
  if (parallel.threads <= tasks || units < 2 || work.ns < worth_asking_ns ||
      work.steps * work.ns < waking_ns)
    return {tasks, 1};
  const double barrier = barrier_ns(parallel);
  Formation best{tasks, 1};
  double least = 1e300;
  for (int64_t members = 1; members <= std::min(parallel.threads, units); members++) {
    const int64_t teams = teams_of(members), tasks_each = (tasks + teams - 1) / teams;
    const double share = (double)((units + members - 1) / members) / (double)units;
    const double ns =
        work.ns * share + (members > 1 ? barrier * (1 + work.bytes * share / 64 / 5) : 0);
    const double all = work.steps * (double)tasks_each * ns + (members > 1 ? waking_ns : 0);
    if (all < least) {
      least = all;
      best = {members > 1 ? teams : tasks, members};
    }
  }
  return best;
}

// Measured nanoseconds for a vector of neurons: a constant for the equations, plus a term for the
// events of (1), assumed 3 % of the neurons and 5 % of the inputs, or for the rows of the product.
inline Formation forward_teams(const ForwardArgs& f, Parallel parallel, int64_t lanes) {
  const Layer& l = f.layer;
  const double numbers = (double)(tile_items(l.B) * padded(l.N));
  const double events = (l.S ? 0.03 * (double)l.N : 0) + 0.05 * (double)f.projection.I;
  const Work work{(double)l.longest(), numbers / (double)lanes * (8 + 0.7 * events), numbers / 8};
  Formation how = formation(parallel, tiles(l.B), l, work);
  how.descending = l.lengths != nullptr;
  return how;
}
inline Formation backward_teams(const BackwardArgs& f, Parallel parallel, int64_t lanes,
                                int64_t groups) {
  const Layer& l = f.layer;
  const double numbers = (double)(tile_items(l.B) * padded(l.N));
  const double product = 0.15 * (double)(l.N * l.S);
  const Work work{(double)l.longest(), numbers / (double)lanes * (25 + product), 4 * numbers};
  Formation how = formation(parallel, groups, l, work);
  how.descending = l.lengths != nullptr;
  return how;
}

}  // namespace
}  // namespace lsnn::cpu
