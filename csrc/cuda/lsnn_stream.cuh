// What the kernels of the paper's network read of main memory, some steps before it is used.
#pragma once
#include "neurons.cuh"

namespace lsnn::cuda {

// What a lane reads of the rows of an array: `most` numbers side by side, of which `live` are
// there. whole: as load_row has it.
template <int most, bool whole> struct LaneRows {
  const float* from;  // the next row that is not on its way yet
  int64_t stride;     // from one row to the next
  int live;

  // is_there: whether the array has that row.
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

// A ring of stages, one a step. Each lane copies what it reads itself: no barrier. copy(to) begins
// the copies of the next step that is not on its way yet.
template <unsigned stages> struct StageRing {
  static_assert((stages & (stages - 1)) == 0);
  float* const ring;  // [stages,stage] from the lane's place on
  const int stage;
  unsigned at;  // of the step at hand

  template <class Copy> __device__ __forceinline__ StageRing(float* own, int size, const Copy& copy)
      : ring(own),
        stage(size),
        at(0) {
#pragma unroll
    for (unsigned i = 0; i < stages - 1; i++) begin(i, copy);
  }
  // A group for each step, also where none is left: their number says which of them have arrived.
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
  // Into the stage of the step before, which has been read.
  template <class Copy> __device__ __forceinline__ void advance(const Copy& copy) {
    begin((at + stages - 1) % stages, copy);
    at = (at + 1) % stages;
  }
};

}  // namespace lsnn::cuda
