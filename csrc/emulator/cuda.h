// What kernels see instead of the CUDA headers. Kernels take their shared memory from
// emulator::shared_memory(): there is no
// __shared__, since several blocks can be alive on one OS thread.
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

// ------------------------------------------------------------------------------------ tensor cores
namespace emulator {
inline float from_bfloat16(uint32_t bits) { return __uint_as_float(bits << 16); }

// The instruction mma.m16n8k16 of bfloat16, c (16,8) += a (16,16) b (16,8), with PTX's fragments:
// of lane 4 g + t, a[0] and a[2] have rows g, a[1] and a[3] rows g + 8; a[0], a[1] and b[0] have 2
// t and 2 t + 1 of the 16 that are summed over, the others 2 t + 8 and 2 t + 9; b has column g; c
// has columns 2 t and 2 t + 1 of row g, then of row g + 8. Sums one after the other, each rounded,
// which hardware does in another way.
inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Place place) {
  const unsigned row = current->lane / 4, column = current->lane % 4 * 2;
  auto pair = [](uint32_t first, uint32_t second) { return first | (uint64_t)second << 32; };
  const Exchanged& lanes =
      exchange(~0u, {{pair(a[0], a[2]), pair(a[1], a[3]), pair(b[0], b[1])}}, "mma", place);
  for (unsigned i = 0; i < 4; i++)
    for (unsigned k = 0; k < 16; k++) {
      const unsigned t = k % 8 / 2, shift = k / 8 * 32 + k % 2 * 16;
      c[i] += from_bfloat16(uint16_t(lanes.of[4 * row + t].word[i / 2] >> shift)) *
              from_bfloat16(uint16_t(lanes.of[4 * (column + i % 2) + t].word[2] >> shift));
    }
}
}  // namespace emulator

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
