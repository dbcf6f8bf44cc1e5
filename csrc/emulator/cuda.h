// Replaces the CUDA headers for kernels. Shared memory comes from emulator::shared_memory(): there
// is no __shared__, since several blocks can be alive on one OS thread.
#pragma once
#include <math.h>

#include "atomics.h"
#include "device.h"
#include "intrinsics.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__  // empty: the headers of the C++ library use this word inside
                      // __attribute__(())
#define __align__(n) alignas(n)

#define threadIdx (::emulator::current->thread_index)
#define blockIdx (::emulator::current->block_index)
#define blockDim (::emulator::current->block_dim)
#define gridDim (::emulator::current->grid_dim)
constexpr int warpSize = 32;

// ----------------------------------------------------------------------------- barriers and fences
inline void __syncthreads(emulator::Place place = emulator::Place::current()) {
  emulator::barrier(emulator::Scope::block, false, "__syncthreads", place);
}
inline int __syncthreads_count(int vote, emulator::Place place = emulator::Place::current()) {
  return (int)emulator::barrier(emulator::Scope::block, vote != 0, "__syncthreads_count", place)
      .yes;
}
inline int __syncthreads_or(int vote, emulator::Place place = emulator::Place::current()) {
  return emulator::barrier(emulator::Scope::block, vote != 0, "__syncthreads_or", place).yes != 0;
}
inline int __syncthreads_and(int vote, emulator::Place place = emulator::Place::current()) {
  const emulator::Votes votes =
      emulator::barrier(emulator::Scope::block, vote != 0, "__syncthreads_and", place);
  return votes.yes == votes.threads;
}
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
inline void __nanosleep(unsigned, emulator::Place place = emulator::Place::current()) {
  emulator::yield(place);
}

// --------------------------------------------------------------------------------- warp operations
inline void __syncwarp(unsigned mask = ~0u, emulator::Place place = emulator::Place::current()) {
  emulator::sync_warp(mask, place);
}
inline unsigned __ballot_sync(unsigned mask, int vote,
                              emulator::Place place = emulator::Place::current()) {
  return emulator::ballot(mask, vote != 0, "__ballot_sync", place);
}
inline int __any_sync(unsigned mask, int vote, emulator::Place place = emulator::Place::current()) {
  return emulator::ballot(mask, vote != 0, "__any_sync", place) != 0;
}
inline int __all_sync(unsigned mask, int vote, emulator::Place place = emulator::Place::current()) {
  return emulator::ballot(mask, vote == 0, "__all_sync", place) == 0;
}

namespace emulator {
// A value of up to 64 bits through shuffle(); a width splits the warp into parts that shuffle among
// themselves.
template <class T> T shuffle_value(unsigned mask, T value, unsigned source, const char* operation,
                                   Place place) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source, operation, place);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
inline unsigned first_lane(int width) { return current->lane & ~unsigned(width - 1); }
inline unsigned last_lane(int width) { return current->lane | unsigned(width - 1); }
}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              emulator::Place place = emulator::Place::current()) {
  const unsigned source = emulator::first_lane(width) | unsigned(lane & (width - 1));
  return emulator::shuffle_value(mask, value, source, "__shfl_sync", place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  emulator::Place place = emulator::Place::current()) {
  const unsigned source = emulator::current->lane ^ unsigned(lanes);
  const bool inside = source <= emulator::last_lane(width);
  return emulator::shuffle_value(mask, value, inside ? source : emulator::current->lane,
                                 "__shfl_xor_sync", place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                 emulator::Place place = emulator::Place::current()) {
  const unsigned lane = emulator::current->lane;
  const bool inside = lane >= emulator::first_lane(width) + lanes;
  return emulator::shuffle_value(mask, value, inside ? lane - lanes : lane, "__shfl_up_sync",
                                 place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                   emulator::Place place = emulator::Place::current()) {
  const unsigned lane = emulator::current->lane;
  const bool inside = lane + lanes <= emulator::last_lane(width);
  return emulator::shuffle_value(mask, value, inside ? lane + lanes : lane, "__shfl_down_sync",
                                 place);
}

// ------------------------------------------------------------------------------ cooperative groups
namespace cooperative_groups {

struct grid_group {
  void sync(emulator::Place place = emulator::Place::current()) const {
    emulator::barrier(emulator::Scope::grid, false, "grid.sync", place);
  }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  void sync(emulator::Place place = emulator::Place::current()) const {
    emulator::barrier(emulator::Scope::cluster, false, "cluster.sync", place);
  }
  unsigned block_rank() const { return emulator::current->cluster_rank; }
  unsigned num_blocks() const { return emulator::current->cluster_size; }
  template <class T> T* map_shared_rank(T* address, unsigned rank,
                                        emulator::Place place = emulator::Place::current()) const {
    return static_cast<T*>(emulator::map_shared_rank(address, rank, place));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
