// What kernels and their launches need of the device: the CUDA headers, or the emulator in their
// place. Whatever CUDA offers as machine instructions only stands here, once for each.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../platform.h"
#include "plan.h"

#if LSNN_NVCC
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#else
#include <cstring>
#include <source_location>

#include "../emulator/cuda.h"
#include "../emulator/emulator.h"
#endif

#define LSNN_DEVICE static __device__ __forceinline__

namespace lsnn::cuda {

// Where in the kernel something waits; the emulator names the place when it goes wrong.
#if LSNN_NVCC
struct Where {
  static constexpr __device__ Where current() { return {}; }
};
#else
using Where = std::source_location;
#endif

// A grid of `blocks`, in clusters of `cluster` blocks that are on the device together.
struct Launch {
  int64_t blocks;
  int threads;           // of a block
  int64_t shared = 0;    // bytes of a block
  int cluster = 1;
  void* stream = nullptr;
};

[[noreturn]] inline void fail(const std::string& what, const Launch& l, const char* why) {
  throw std::runtime_error(what + " (" + std::to_string(l.blocks) + " blocks of " +
                           std::to_string(l.threads) + " threads, " + std::to_string(l.shared) +
                           " bytes of shared memory): " + why);
}

#if LSNN_NVCC  // ----------------------------------------------------------------------------- CUDA

LSNN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char lsnn_shared[];
  return lsnn_shared;
}
// Waits for the `threads` threads of the block that name this barrier, 1 to 15.
LSNN_DEVICE void named_barrier(unsigned barrier, unsigned threads, Where) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
LSNN_DEVICE void warp_barrier(Where) { __syncwarp(); }
// to L2; reads nothing
LSNN_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Read only while the kernel runs, so that the cache for constants may serve it.
template <class X> LSNN_DEVICE X load_constant(const X* p) {
  static_assert(sizeof(X) == 8 || sizeof(X) % 16 == 0);
  X x;
  if constexpr (sizeof(X) == 8) {
    const uint2 raw = __ldg(reinterpret_cast<const uint2*>(p));
    memcpy(&x, &raw, 8);
  } else {
    uint4 raw[sizeof(X) / 16];
#pragma unroll
    for (size_t i = 0; i < sizeof(X) / 16; i++)
      raw[i] = __ldg(reinterpret_cast<const uint4*>(p) + i);
    memcpy(&x, raw, sizeof(X));
  }
  return x;
}

// Sixteen bytes or more in one piece; p must be aligned for it.
template <class Q, class X> LSNN_DEVICE Q load_whole(const X* p) {
  return *reinterpret_cast<const Q*>(p);
}
template <class Q, class X> LSNN_DEVICE void store_whole(X* p, const Q& q) {
  *reinterpret_cast<Q*>(p) = q;
}

// 64 bits that arrive whole in a block of the cluster, in no order with anything else.
LSNN_DEVICE void store_relaxed(uint64_t* p, uint64_t x) {
#if LSNN_CLUSTERS
  asm volatile("st.relaxed.cluster.u64 [%0], %1;" ::"l"(p), "l"(x) : "memory");
#endif
}
LSNN_DEVICE uint64_t load_relaxed(const uint64_t* p) {
  uint64_t x = 0;
#if LSNN_CLUSTERS
  asm volatile("ld.relaxed.cluster.u64 %0, [%1];" : "=l"(x) : "l"(p) : "memory");
#endif
  return x;
}
LSNN_DEVICE void poll_again() {}
#if LSNN_CLUSTERS
LSNN_DEVICE unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
LSNN_DEVICE void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <class X> LSNN_DEVICE X* peer(X* own, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(own, rank);
}
#else
LSNN_DEVICE unsigned cluster_rank() { return 0; }
LSNN_DEVICE void cluster_sync() {}
template <class X> LSNN_DEVICE X* peer(X* own, unsigned) { return own; }
#endif

template <class Job> void launch(const char* what, const Launch& l, void (*kernel)(Job),
                                 const Job& job) {
  auto check = [&](cudaError_t error) {
    // the error does not stay behind
    if (error != cudaSuccess) {
      cudaGetLastError();
      fail(what, l, cudaGetErrorString(error));
    }
  };
  if (l.shared > 48 << 10)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)l.shared));
  if (l.cluster > 8)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {(unsigned)l.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)l.blocks);
  config.blockDim = dim3((unsigned)l.threads);
  config.dynamicSmemBytes = (size_t)l.shared;
  config.stream = static_cast<cudaStream_t>(l.stream);
  config.attrs = &attribute;
  config.numAttrs = l.cluster > 1;
  check(cudaLaunchKernelEx(&config, kernel, job));
}
inline void clear(void* p, int64_t bytes, void* stream) {
  const cudaError_t error = cudaMemsetAsync(p, 0, (size_t)bytes, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess)
    cudaGetLastError(),
        throw std::runtime_error(std::string("clearing memory: ") + cudaGetErrorString(error));
}

inline Device device_limits() {
  auto check = [](cudaError_t error) {
    if (error != cudaSuccess)
      cudaGetLastError(),
          throw std::runtime_error(std::string("no CUDA device: ") + cudaGetErrorString(error));
  };
  int device = 0;
  check(cudaGetDevice(&device));
  auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  return {capability, attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrClusterLaunch) ? 8 : 1};
}

#else  // ----------------------------------------------------------------------------- the emulator

// A small GPU, so that few items already meet blocks that work on several of them.
inline constexpr Device emulated_device = {90, 4, 227 << 10, 8};

LSNN_DEVICE unsigned char* shared_memory() { return emulator::shared_memory(); }
LSNN_DEVICE void named_barrier(unsigned barrier, unsigned threads, Where where) {
  emulator::named_barrier(barrier, threads, where);
}
LSNN_DEVICE void warp_barrier(Where where) { __syncwarp(~0u, where); }
LSNN_DEVICE void prefetch(const void*) {}
template <class X> LSNN_DEVICE X load_constant(const X* p) { return *p; }
// By memcpy: a host compiler may move an aligned load before the test of the alignment.
template <class Q, class X> LSNN_DEVICE Q load_whole(const X* p) {
  Q q;
  std::memcpy(&q, p, sizeof q);
  return q;
}
template <class Q, class X> LSNN_DEVICE void store_whole(X* p, const Q& q) {
  std::memcpy(p, &q, sizeof q);
}
LSNN_DEVICE void store_relaxed(uint64_t* p, uint64_t x) { emulator::store_relaxed(p, x); }
LSNN_DEVICE uint64_t load_relaxed(const uint64_t* p) { return emulator::load_relaxed(p); }
LSNN_DEVICE void poll_again() { emulator::yield(); }
LSNN_DEVICE unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
LSNN_DEVICE void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <class X> LSNN_DEVICE X* peer(X* own, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(own, rank);
}

template <class Job> void launch(const char* what, const Launch& l, void (*kernel)(Job),
                                 const Job& job) {
  try {
    emulator::launch({dim3((unsigned)l.blocks), dim3((unsigned)l.threads), (size_t)l.shared,
                      (unsigned)l.cluster, false},
                     [&] { kernel(job); });
  } catch (const emulator::Error& error) {
    fail(what, l, error.what());
  }
}
inline void clear(void* p, int64_t bytes, void*) { std::memset(p, 0, (size_t)bytes); }
inline Device device_limits() { return emulated_device; }

#endif

// The threads of a block that share a batch item: one or more whole warps.
struct Group {
  int id;  // among the groups of the block
  int thread;  // of the group
  int threads;  // of the group

  __device__ __forceinline__ static Group mine(int threads) {
    return {(int)threadIdx.x / threads, (int)threadIdx.x % threads, threads};
  }
  __device__ __forceinline__ int lane() const { return thread % 32; }
  __device__ __forceinline__ int warp() const { return thread / 32; }
  __device__ __forceinline__ int warps() const { return threads / 32; }
  // All threads of the group, and what they have written to shared and global memory.
  __device__ __forceinline__ void sync(Where where = Where::current()) const {
    if (threads == 32) warp_barrier(where);
    else named_barrier(id + 1, threads, where);
  }
};

}  // namespace lsnn::cuda
