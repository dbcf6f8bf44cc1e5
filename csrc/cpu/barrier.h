// A team of threads that share the neurons of a tile, and the barrier between their steps. Kernels
// receive a Member; thread_teams.h forms the teams.
#pragma once
#include <cstdint>

#include "../alif.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lsnn::cpu {

// A barrier with phases for the members of a team. Each word has its own cache line, as one is read
// while another is written.
struct Barrier {
  alignas(64) uint32_t arrived = 0;
  alignas(64) uint32_t phase = 0;
  alignas(64) uint32_t stopped = 0;  // cancellation was requested
};

// One thread of a team, with scratch memory shared by all members and its own.
struct Member {
  int64_t index = 0, members = 1;
  Barrier* barrier = nullptr;
  void (*yield)() = nullptr;  // releases the core
  void *shared = nullptr, *own = nullptr;
  Interrupt interrupt = {};
};

struct ScratchBytes { int64_t shared, own; };  // own: of each member

namespace {  // a copy for each instruction set of the CPU path, see platform.h

// Returns when all members have arrived; their earlier writes are visible to all members.
LSNN_INLINE void arrive_and_wait(const Member& m) {
  if (m.members == 1) return;
  Barrier& barrier = *m.barrier;
  const uint32_t phase = __atomic_load_n(&barrier.phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) == (uint32_t)m.members) {
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  // The others arrive within a microsecond unless one was preempted: then it should get this core.
  for (int waited = 0; __atomic_load_n(&barrier.phase, __ATOMIC_ACQUIRE) == phase; waited++) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    if (waited % 1024 == 1023) m.yield();
  }
}

// Whether cancellation was requested: every member polls, the first one decides, and after the next
// barrier all read the same decision. Two polls are at least two barriers apart, so the first
// member cannot decide again before all have read.
LSNN_INLINE void ask_to_stop(const Member& m) {
  if (!m.interrupt.wanted || !m.interrupt.wanted(m.interrupt.context)) return;
  if (m.index == 0) __atomic_store_n(&m.barrier->stopped, 1, __ATOMIC_RELAXED);
}
LSNN_INLINE bool is_stopped(const Member& m) {
  return m.interrupt.wanted && __atomic_load_n(&m.barrier->stopped, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace lsnn::cpu
