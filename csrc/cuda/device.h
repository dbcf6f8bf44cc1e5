// Device functions and launches: the CUDA headers, or the emulator instead. Single machine
// instructions are in ptx.cuh.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../platform.h"
#include "driver.h"
#include "plan.h"
#include "ptx.cuh"

#if LSNN_NVCC
#include <cooperative_groups.h>
#else
#include "../emulator/emulator.h"
#endif

namespace lsnn::cuda {

// A grid of `blocks`, in clusters of `cluster` co-resident blocks.
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

inline std::string no_device(cudaError_t error) {
  int needed = 0, driver = 0;
  cudaRuntimeGetVersion(&needed);
  cudaDriverGetVersion(&driver);  // 0 without a driver
  const bool too_old = error == cudaErrorInsufficientDriver || driver / 1000 < needed / 1000;
  return "no CUDA device: " +
         (too_old ? driver_too_old(needed, driver) : cudaGetErrorString(error));
}

LSNN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char lsnn_shared[];
  return lsnn_shared;
}
LSNN_DEVICE void warp_barrier(Where) { __syncwarp(); }
// A load through the read-only cache, of memory that is constant while the kernel runs.
template <class X> LSNN_DEVICE X load_constant(const X* p) {
  static_assert(sizeof(X) % 16 == 0);
  X x;
  uint4 raw[sizeof(X) / 16];
#pragma unroll
  for (size_t i = 0; i < sizeof(X) / 16; i++) raw[i] = __ldg(reinterpret_cast<const uint4*>(p) + i);
  memcpy(&x, raw, sizeof(X));
  return x;
}

// A vectorized access; p must be aligned to Q.
template <class Q, class X> LSNN_DEVICE Q load_whole(const X* p) {
  return *reinterpret_cast<const Q*>(p);
}
template <class Q, class X> LSNN_DEVICE void store_whole(X* p, const Q& q) {
  *reinterpret_cast<Q*>(p) = q;
}

// Backs off in a loop that polls for a store of another block, after more polls than an exchange
// takes. Builds for tests trap, so that an error in the protocol does not hang a GPU.
LSNN_DEVICE void poll_again(unsigned& polls) {
  if (++polls > 64) __nanosleep(32);
#ifdef LSNN_MOST_POLLS
  if (polls > LSNN_MOST_POLLS) __trap();
#endif
}
#if LSNN_CLUSTERS
LSNN_DEVICE unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
LSNN_DEVICE void cluster_sync() { cooperative_groups::this_cluster().sync(); }
#else
LSNN_DEVICE unsigned cluster_rank() { return 0; }
LSNN_DEVICE void cluster_sync() {}
#endif

inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears the error
    throw std::runtime_error(no_device(error));
  }
  return value;
}

// A launch configuration for the runtime. The limit of shared memory is always set to the maximum:
// with the size of this launch, another host thread that launches a larger layer could find it
// lowered.
class Configuration {
 public:
  template <class Kernel> Configuration(const Launch& l, Kernel* kernel) {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (l.shared > shared_of_every_gpu)
      error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim = {(unsigned)l.cluster, 1, 1};
    config.gridDim = dim3((unsigned)l.blocks);
    config.blockDim = dim3((unsigned)l.threads);
    config.dynamicSmemBytes = (size_t)l.shared;
    config.stream = static_cast<cudaStream_t>(l.stream);
    config.attrs = &attribute_;
    config.numAttrs = l.cluster > 1;
  }
  Configuration(const Configuration&) = delete;  // config points into it

  cudaError_t error = cudaSuccess;
  cudaLaunchConfig_t config{};

 private:
  cudaLaunchAttribute attribute_{};
};

template <class Job> void launch(const char* what, const Launch& l, void (*kernel)(Job),
                                 const Job& job) {
  static_assert(sizeof(Job) <= 4096, "the limit of arguments before CUDA 12.1");
  const Configuration c(l, kernel);
  const cudaError_t error =
      c.error == cudaSuccess ? cudaLaunchKernelEx(&c.config, kernel, job) : c.error;
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail(what, l, cudaGetErrorString(error));
}
// The number of clusters of such a launch that fit on the device at once; 0: none.
template <class Job> int clusters_at_once(const Launch& l, void (*kernel)(Job)) {
  const Configuration c(l, kernel);
  int n = 0;
  if (c.error == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&n, kernel, &c.config) == cudaSuccess)
    return n;
  cudaGetLastError();
  return 0;
}
inline void clear(void* p, int64_t bytes, void* stream) {
  const cudaError_t error = cudaMemsetAsync(p, 0, (size_t)bytes, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess)
    cudaGetLastError(),
        throw std::runtime_error(std::string("clearing memory: ") + cudaGetErrorString(error));
}

// Without `clusters`, which depends on a kernel.
inline Device device_limits() {
  const int capability = 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
                         device_attribute(cudaDevAttrComputeCapabilityMinor);
  return {capability, device_attribute(cudaDevAttrMultiProcessorCount),
          device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          device_attribute(cudaDevAttrClusterLaunch) ? 8 : 1};
}
// The compute capability that a kernel was compiled for, see as_compiled; 0: for no GPU here; the
// launch will fail.
template <class Kernel> int compiled_for(Kernel* kernel) {
  cudaFuncAttributes of{};
  if (cudaFuncGetAttributes(&of, reinterpret_cast<const void*>(kernel)) == cudaSuccess)
    return of.ptxVersion;
  cudaGetLastError();
  return 0;
}
inline uint64_t counted_launches() { return 0; }
inline int device_index() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

#else  // ----------------------------------------------------------------------------- the emulator

// A small GPU, so that blocks have several items already for small batches.
inline constexpr Device emulated_device = {90, 4, 227 << 10, 8};

LSNN_DEVICE unsigned char* shared_memory() { return emulator::shared_memory(); }
LSNN_DEVICE void warp_barrier(Where where) { __syncwarp(~0u, where); }
template <class X> LSNN_DEVICE X load_constant(const X* p) { return *p; }
// By memcpy: a host compiler may hoist an aligned load above the test of the alignment.
template <class Q, class X> LSNN_DEVICE Q load_whole(const X* p) {
  Q q;
  std::memcpy(&q, p, sizeof q);
  return q;
}
template <class Q, class X> LSNN_DEVICE void store_whole(X* p, const Q& q) {
  std::memcpy(p, &q, sizeof q);
}
LSNN_DEVICE void poll_again(unsigned&) { emulator::yield(); }
LSNN_DEVICE unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
LSNN_DEVICE void cluster_sync() { cooperative_groups::this_cluster().sync(); }

// Registers of a thread of a kernel, 0: unknown. Set by tests.
inline unsigned (*registers_of)(const void* kernel) = nullptr;

template <class Job> void launch(const char* what, const Launch& l, void (*kernel)(Job),
                                 const Job& job) {
  const unsigned registers = registers_of ? registers_of(reinterpret_cast<const void*>(kernel)) : 0;
  try {
    emulator::launch({dim3((unsigned)l.blocks), dim3((unsigned)l.threads), (size_t)l.shared,
                      registers, (unsigned)l.cluster, false},
                     [&] { kernel(job); });
  } catch (const emulator::Error& error) {
    fail(what, l, error.what());
  }
}
inline void clear(void* p, int64_t bytes, void*) {
  emulator::stats().launches++;  // clearing memory is a launch, too
  std::memset(p, 0, (size_t)bytes);
}
inline uint64_t counted_launches() { return emulator::stats().launches; }
template <class Job> int clusters_at_once(const Launch& l, void (*)(Job)) {
  return (int)(l.blocks / l.cluster);
}
inline Device device_limits() { return emulated_device; }
template <class Kernel> int compiled_for(Kernel*) { return emulated_device.capability; }
inline int device_index() { return 0; }

#endif

// The threads of a block that share a batch item: one or more warps.
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
  // Synchronizes the threads of the group and their writes to shared and global memory.
  __device__ __forceinline__ void sync(Where where = Where::current()) const {
    if (threads == 32) warp_barrier(where);
    else barrier_sync(id + 1, threads, where);
  }
};

}  // namespace lsnn::cuda
