// Prefetches global memory for the kernels of the paper's network, some steps ahead.
#pragma once
#include "neurons.cuh"

namespace lsnn::cuda {

// Rows of an array that a lane reads: `most` adjacent numbers, of which `live` exist. whole: as for
// load_row.
template <int most, bool whole> struct LaneRows {
  const float* from;  // the next row to copy
  int64_t stride;     // from one row to the next
  int live;

  // is_there: whether the row exists.
  __device__ __forceinline__ void copy(float* to, bool is_there, Where where = Where::current()) {
    if (whole) {
      if (is_there && live) cp_async_shared_global<16>(to, from, where);
    } else {
#pragma unroll
      for (int i = 0; i < most; i++)
        if (is_there && i < live) cp_async_shared_global<4>(to + i, from + i, where);
    }
    from += stride;
  }
};

// A ring of stages, one per step. Each lane copies only what it reads itself, so no barrier is
// needed. copy(to) starts the copies of the next step.
template <unsigned stages> struct StageRing {
  static_assert((stages & (stages - 1)) == 0);
  float* const ring;  // [stages,stage] from the lane's element on
  const int stage;
  unsigned at;  // stage of this step

  template <class Copy> __device__ __forceinline__ StageRing(float* own, int size, const Copy& copy)
      : ring(own),
        stage(size),
        at(0) {
#pragma unroll
    for (unsigned i = 0; i < stages - 1; i++) begin(i, copy);
  }
  // One commit group per step, also after the last, as wait() counts groups.
  template <class Copy>
  __device__ __forceinline__ void begin(unsigned to, const Copy& copy,
                                        Where where = Where::current()) const {
    copy(ring + (int)to * stage);
    cp_async_commit_group(where);
  }
  __device__ __forceinline__ const float* wait(Where where = Where::current()) const {
    cp_async_wait_group<(int)stages - 2>(where);
    return ring + (int)at * stage;
  }
  // Refills the stage of the step before.
  template <class Copy> __device__ __forceinline__ void advance(const Copy& copy) {
    begin((at + stages - 1) % stages, copy);
    at = (at + 1) % stages;
  }
};

}  // namespace lsnn::cuda
