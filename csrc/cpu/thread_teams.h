// Who runs the tiles: a thread each, or a team of threads each, where tiles are fewer than threads.
// For run.cpp, which no instruction set compiles.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

#include "block_cache.h"
#include "pack.h"

namespace lsnn::cpu {
namespace {

// How many teams of how many threads, how long the first waits for the others, and whether the
// first tasks are the longest.
struct Formation {
  int64_t teams, members;
  std::chrono::microseconds patience{200};  // a sleeping thread arrives after some ten
  bool descending = false;
};

// The scheduler of the caller may run bodies one after the other, so a team consists of the threads
// that came in time. Who comes later goes away again: the others have shared out the neurons among
// themselves.
class Team {
 public:
  // Runs body(member) on this thread, if it is early enough to be one of the members.
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
  std::atomic<int64_t> state_{0};  // how many came, and whether the team is closed
  std::atomic<int64_t> members_{0};  // 0: not closed yet; -1: there was no memory
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
  // The scratch memory is the leader's: nobody leaves before all are done.
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

// body(task, member) for each task, on all members of one team.
template <class F>
void in_teams(Parallel parallel, const Formation& how, int64_t tasks, const ScratchBytes& bytes,
              const F& body) {
  std::vector<Team> teams(how.teams);
  std::atomic<int64_t> next{0};
  each(parallel, how.teams * how.members, [&](int64_t i) {
    const int64_t team = i / how.members;
    teams[team].join(how, bytes, parallel.interrupt, [&](const Member& member) {
      // Of neighbours, as the scheduler may give them, one thread would have the longest of all.
      const int64_t first = how.descending && how.members == 1 ? next++ : team;
      for (int64_t task = first; task < tasks; task += how.teams) body(task, member);
    });
  });
}

// What a barrier of two threads takes, in nanoseconds: 50 to 500, as their cores share a cache or
// do not. Measured once; infinite where threads do not run at once.
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

// How many steps there are, what one takes a thread alone, and the bytes of it that other members
// read.
struct Work { double steps, ns, bytes; };

// The fastest for so many tasks of a tile each, by the time of the team that has most to do. A
// member has whole units of `pad` neurons; a cache line that another one has read takes it about a
// fifth of a barrier to write again.
inline Formation formation(Parallel parallel, int64_t tasks, const Layer& l, const Work& work) {
  const int64_t units = padded(l.N) / pad;
  auto teams_of = [&](int64_t members) {
    return std::max<int64_t>(1, std::min(tasks, parallel.threads / members));
  };
  if (const int64_t requested = l.options.team_size) {
    Formation how{requested > 1 ? teams_of(requested) : tasks, std::min(requested, units)};
    // On a busy machine too it is the team that was asked for, where the threads are there.
    if (parallel.threads >= how.teams * how.members) how.patience = std::chrono::seconds(1);
    return how;
  }
  constexpr double worth_asking_ns = 500;  // as long as the slowest barrier
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

// By measurement, in nanoseconds a vector of neurons: the neurons' own equations, and what grows
// with the events of (1), of which a layer is taken to have 3 % of its neurons and 5 % of its
// inputs, or with the row of the product.
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
