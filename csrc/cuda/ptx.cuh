// PTX instructions without an intrinsic, by their PTX names. A state space in the name applies to
// the pointers. The emulator has functions instead.
#pragma once
#include <cstdint>

#include "../platform.h"

#if LSNN_NVCC
#include <cuda_runtime.h>

#include <type_traits>
#else
#include <cstring>
#include <source_location>

#include "../bfloat16.h"
#include "../emulator/cuda.h"
#endif

#define LSNN_DEVICE static __device__ __forceinline__

namespace lsnn::cuda {

// The source location of a wait, for messages of the emulator.
#if LSNN_NVCC
struct Where {
  static constexpr __device__ Where current() { return {}; }
};
#else
using Where = std::source_location;
#endif

// x, opaque to the compiler: expressions of it are recomputed at each use and take no registers.
template <class X> LSNN_DEVICE X opaque(X x) {
#if LSNN_NVCC
  if constexpr (sizeof(X) == 8) asm volatile("" : "+l"(x));
  else asm volatile("" : "+r"(x));
#endif
  return x;
}

#if LSNN_NVCC  // ----------------------------------------------------------------------------- CUDA

LSNN_DEVICE unsigned shared_address(const void* shared) {
  return (unsigned)__cvta_generic_to_shared(shared);
}

// Waits for `threads` threads of the block at barrier 1 to 15. aligned: all lanes of a warp execute
// it together.
LSNN_DEVICE void barrier_sync(unsigned barrier, unsigned threads, Where) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
template <unsigned threads> LSNN_DEVICE void barrier_sync_aligned(unsigned barrier, Where) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "n"(threads) : "memory");
}
LSNN_DEVICE void barrier_sync_aligned(unsigned barrier, unsigned threads, Where) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Prefetches into the L2 cache.
LSNN_DEVICE void prefetch_global_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// A barrier in shared memory that counts arrivals and bytes.
LSNN_DEVICE void mbarrier_init(uint64_t* shared, unsigned arrivals, Where) {
#if LSNN_CLUSTERS
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(shared)),
               "r"(arrivals)
               : "memory");
#endif
}
// Makes the initialization visible to the cluster; a cluster barrier has to follow.
LSNN_DEVICE void fence_mbarrier_init_release_cluster() {
#if LSNN_CLUSTERS
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
LSNN_DEVICE void mbarrier_arrive_expect_tx(uint64_t* shared, unsigned bytes, Where) {
#if LSNN_CLUSTERS
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(shared)),
      "r"(bytes)
      : "memory");
#endif
}
// Whether the phase of this parity has ended. May suspend the thread, except in builds for tests,
// which count polls. Acquires at block scope although other blocks store, as the data lies in this
// block's shared memory; cluster scope would also invalidate the L1 cache.
#ifdef LSNN_MOST_POLLS
#define LSNN_MBARRIER_WAIT "mbarrier.test_wait.parity.shared::cta.b64"
#else
#define LSNN_MBARRIER_WAIT "mbarrier.try_wait.parity.shared::cta.b64"
#endif
LSNN_DEVICE bool mbarrier_try_wait_parity(const uint64_t* shared, unsigned parity, Where) {
  unsigned has = 1;
#if LSNN_CLUSTERS
  asm volatile("{\n .reg .pred p;\n " LSNN_MBARRIER_WAIT " p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
               : "=r"(has)
               : "r"(shared_address(shared)), "r"(parity)
               : "memory");
#endif
  return has;
}
#undef LSNN_MBARRIER_WAIT
// The address of this location in another block of the cluster.
LSNN_DEVICE unsigned mapa_shared_cluster(const void* shared, unsigned rank) {
  unsigned there = 0;
#if LSNN_CLUSTERS
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there)
      : "r"(shared_address(shared)), "r"(rank));
#endif
  return there;
}

// If wanted, stores four numbers into a block of the cluster, at the location of `shared` there;
// its mbarrier counts the bytes. The instruction is predicated: without a branch the address
// computation overlaps other work.
LSNN_DEVICE void st_async_shared_cluster_if(bool wanted, float* shared, const float (&x)[4],
                                            uint64_t* mbarrier, unsigned rank, Where) {
#if LSNN_CLUSTERS
  const unsigned of = wanted ? rank : 0;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.u32 p, %6, 0;\n"
      " @p st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, "
      "[%5];\n}" ::"r"(mapa_shared_cluster(shared, of)),
      "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "r"(mapa_shared_cluster(mbarrier, of)),
      "r"((unsigned)wanted)
      : "memory");
#endif
}

// An asynchronous copy of 4 or 16 bytes; 16 bytes bypass the L1 cache. Synchronous on older
// GPUs.
template <int bytes> LSNN_DEVICE void cp_async_shared_global(void* shared, const void* global,
                                                             Where) {
  static_assert(bytes == 4 || bytes == 16);
#if LSNN_ASYNC_COPIES
  const unsigned to = shared_address(shared);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
#else
  using Piece = std::conditional_t<bytes == 16, uint4, unsigned>;
  *static_cast<Piece*>(shared) = __ldg(static_cast<const Piece*>(global));
#endif
}
// Commits this thread's copies since the last commit as a group.
LSNN_DEVICE void cp_async_commit_group(Where) {
#if LSNN_ASYNC_COPIES
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until all but the `left` newest groups of this thread are complete; visible to this thread
// only.
template <int left> LSNN_DEVICE void cp_async_wait_group(Where) {
#if LSNN_ASYNC_COPIES
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

// Two numbers as bfloat16, rounded to nearest even, the first in the lower half.
LSNN_DEVICE uint32_t cvt_rn_bf16x2_f32(float first, float second) {
  uint32_t pair = 0;
#if LSNN_TENSOR_CORES
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
  __trap();  // the plan asks for none
#endif
  return pair;
}
// Selects four of the eight bytes of two words by the hexadecimal digits of `which`, lowest first.
LSNN_DEVICE uint32_t prmt(uint32_t low, uint32_t high, uint32_t which) {
  return __byte_perm(low, high, which);
}
// c (16,8) += a (16,16) b (16,8) in bfloat16, by all lanes of a warp; PTX defines the layout over
// lanes.
LSNN_DEVICE void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if LSNN_TENSOR_CORES
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // the plan asks for none
#endif
}

#else  // ----------------------------------------------------------------------------- the emulator

LSNN_DEVICE void barrier_sync(unsigned barrier, unsigned threads, Where where) {
  emulator::named_barrier(barrier, threads, where);
}
template <unsigned threads> LSNN_DEVICE void barrier_sync_aligned(unsigned barrier, Where where) {
  emulator::named_barrier_aligned(barrier, threads, where);
}
LSNN_DEVICE void barrier_sync_aligned(unsigned barrier, unsigned threads, Where where) {
  emulator::named_barrier_aligned(barrier, threads, where);
}
LSNN_DEVICE void prefetch_global_l2(const void*) {}
LSNN_DEVICE void mbarrier_init(uint64_t* shared, unsigned arrivals, Where where) {
  emulator::init_mbarrier(shared, arrivals, where);
}
LSNN_DEVICE void fence_mbarrier_init_release_cluster() {}
LSNN_DEVICE void mbarrier_arrive_expect_tx(uint64_t* shared, unsigned bytes, Where where) {
  emulator::arrive_mbarrier(shared, bytes, where);
}
LSNN_DEVICE bool mbarrier_try_wait_parity(const uint64_t* shared, unsigned parity, Where where) {
  return emulator::passed_mbarrier(shared, parity, where);
}
LSNN_DEVICE void st_async_shared_cluster_if(bool wanted, float* shared, const float (&x)[4],
                                            uint64_t* mbarrier, unsigned rank, Where where) {
  if (!wanted) return;
  const auto there = [&](auto* own) {
    return cooperative_groups::this_cluster().map_shared_rank(own, rank, where);
  };
  emulator::store_async(there(shared), x, there(mbarrier), where);
}
template <int bytes> LSNN_DEVICE void cp_async_shared_global(void* shared, const void* global,
                                                             Where where) {
  emulator::copy_async(shared, global, bytes, where);
}
LSNN_DEVICE void cp_async_commit_group(Where) { emulator::commit_copies(); }
template <int left> LSNN_DEVICE void cp_async_wait_group(Where) { emulator::wait_copies(left); }
LSNN_DEVICE uint32_t cvt_rn_bf16x2_f32(float first, float second) {
  return bfloat16(first).bits | (uint32_t)bfloat16(second).bits << 16;
}
LSNN_DEVICE uint32_t prmt(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t both = (uint64_t)high << 32 | low;
  uint32_t found = 0;
  for (int i = 0; i < 4; i++) found |= (uint32_t)(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return found;
}
LSNN_DEVICE void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   Where where = Where::current()) {
  emulator::mma_m16n8k16_bf16(c, a, b, where);
}

#endif

}  // namespace lsnn::cuda
