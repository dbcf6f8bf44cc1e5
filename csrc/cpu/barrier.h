// Threads that do a tile together, each with its share of the neurons, and the barrier at which
// they wait for each other once a step. The kernels see a Member; who forms a team, and when, is
// decided in thread_teams.h.
#pragma once
#include <cstdint>

#include "../alif.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lsnn::cpu {

// A barrier with phases for the members of a team; a cache line for each word, as one of them is
// read while the other is written.
struct Barrier {
  alignas(64) uint32_t arrived = 0;
  alignas(64) uint32_t phase = 0;
  alignas(64) uint32_t stopped = 0;  // the caller wants no more
};

// What one thread of a team knows. All have the same shared scratch memory, and each some of its
// own.
struct Member {
  int64_t index = 0, members = 1;
  Barrier* barrier = nullptr;
  void (*yield)() = nullptr;  // gives the core to somebody else
  void *shared = nullptr, *own = nullptr;
  Interrupt interrupt = {};
};

struct ScratchBytes { int64_t shared, own; };  // own: of each member

namespace {  // each instruction set of the CPU path has a copy of its own, see platform.h

// Returns when all members have arrived; what they wrote before is seen by all of them.
LSNN_INLINE void arrive_and_wait(const Member& m) {
  if (m.members == 1) return;
  Barrier& barrier = *m.barrier;
  const uint32_t phase = __atomic_load_n(&barrier.phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) == (uint32_t)m.members) {
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  // The others are a fraction of a microsecond away, unless one has lost its core: then it should
  // have this one.
  for (int waited = 0; __atomic_load_n(&barrier.phase, __ATOMIC_ACQUIRE) == phase; waited++) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    if (waited % 1024 == 1023) m.yield();
  }
}

// Whether the caller wants no more: every member asks, the first one decides, and after their next
// barrier all know the same. Between two askings lie two barriers at least, so that nobody decides
// anew before all have read.
LSNN_INLINE void ask_to_stop(const Member& m) {
  if (!m.interrupt.wanted || !m.interrupt.wanted(m.interrupt.context)) return;
  if (m.index == 0) __atomic_store_n(&m.barrier->stopped, 1, __ATOMIC_RELAXED);
}
LSNN_INLINE bool is_stopped(const Member& m) {
  return m.interrupt.wanted && __atomic_load_n(&m.barrier->stopped, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace lsnn::cpu
