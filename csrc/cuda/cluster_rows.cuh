// Rows of dL/dc that the blocks of a cluster make together, each of them whole in every block.
#pragma once
#include "device.h"
#include "shared.h"

namespace lsnn::cuda {

// The steps of a group backwards. Each quad is stored into every block, where a barrier in shared
// memory counts the bytes; so there is no flag to look for and nothing to copy. A step is over for
// a thread when the row is whole. A block has waited for all that is stored into it, so it may end
// before the others do. Threads that send nothing have to be held by a barrier of their own, or the
// phase that they wait for is over twice before they look.
//
// Bytes of later steps come while others still wait for n, and must meet other barriers. Where a
// warp sends its part of n + 1 after n is over, there may be bytes of n + 1, but none of n + 2,
// which follow their parts of n + 1: two barriers take turns. Where a warp sends n + 1 before n is
// over, but after n - 1 is, bytes of n + 4 follow their parts of n + 3, n + 2 over for all, of
// which all had n over: four barriers.
template <int barriers> struct ClusterRows {
  uint64_t* const mbarriers;  // [barriers]
  const int NP, ranks;        // ranks: with neurons; nothing is sent to a block that has none
  const bool is_first;        // thread of the group
  const unsigned bytes;       // of a step
  uint32_t number = 0;        // of the step, through over the items of the group

  __device__ __forceinline__ uint64_t* mbarrier(uint32_t step) const {
    return mbarriers + step % barriers;
  }
  // Makes the barriers in memory; a barrier of the cluster has to follow. of_step: the bytes that
  // come to a block.
  __device__ __forceinline__ ClusterRows(uint64_t* own, const Group& group, const Layer& l,
                                         const Shape& shape, int64_t of_step,
                                         Where where = Where::current())
      : mbarriers(own),
        NP((int)padded(l.N)),
        ranks(ranks_with_neurons(l.N, shape.ranks)),
        is_first(group.thread == 0),
        bytes((unsigned)of_step) {
    for (int i = 0; i < barriers && is_first; i++) mbarrier_init(mbarriers + i, 1, where);
    fence_mbarrier_init_release_cluster();
  }
  // Before anything of the step is sent.
  __device__ __forceinline__ void begin_step(Where where = Where::current()) const {
    if (is_first) mbarrier_arrive_expect_tx(mbarrier(number), bytes, where);
  }
  // Four numbers, to `to` in a block, where they are wanted.
  __device__ __forceinline__ void send_if(bool wanted, int rank, float* to, const float (&unit)[4],
                                          Where where = Where::current()) const {
    st_async_shared_cluster_if(wanted, to, unit, mbarrier(number), (unsigned)rank, where);
  }
  // The same, to the blocks first, first + step, ...
  __device__ __forceinline__ void send(float* to, const float (&unit)[4], int first, int step,
                                       Where where = Where::current()) const {
#pragma unroll 1
    for (int r = first; r < ranks; r += step) send_if(true, r, to, unit, where);
  }
  // By all threads: until the row of a step is there; that of the step before the first one is.
  __device__ __forceinline__ void wait(uint32_t step, Where where = Where::current()) const {
    unsigned polls = 0;
    while (!mbarrier_try_wait_parity(mbarrier(step), step / barriers % 2, where)) poll_again(polls);
  }
  __device__ __forceinline__ void end_step(Where where = Where::current()) {
    wait(number, where);
    number++;
  }
};

}  // namespace lsnn::cuda
