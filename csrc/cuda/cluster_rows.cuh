// Rows of dL/dc that the blocks of a cluster make together, each of them whole in every block.
#pragma once
#include "device.h"
#include "shared.h"

namespace lsnn::cuda {

// The steps of a group backwards. Each quad is stored into every block, where a barrier in shared
// memory counts the bytes; so there is no flag to look for and nothing to copy. A step is over for
// a thread when the row is whole, and a warp sends its part of step n + 1 after that of n is over.
// Hence bytes of n + 1 may come while others still wait for n, but none of n + 2, which follow
// their parts of n + 1: two barriers take turns. Threads that send nothing have to be held by a
// barrier of their own, or the phase that they wait for is over twice before they look. A block has
// waited for all that is stored into it, so it may end before the others do.
struct ClusterRows {
  uint64_t* const arrived;  // [2]
  const int NP, ranks;      // ranks: with neurons; nothing is sent to a block that has none
  uint32_t number = 0;      // of the step, through over the items of the group

  __device__ __forceinline__ uint64_t* barrier() const { return arrived + number % 2; }
  __device__ __forceinline__ ClusterRows(uint64_t* barriers, const Layer& l, const Shape& shape)
      : arrived(barriers),
        NP((int)padded(l.N)),
        ranks(ranks_with_neurons(l.N, shape.ranks)) {}
  // By one thread of the group; the barrier of the cluster after it is the caller's.
  __device__ __forceinline__ void make(Where where = Where::current()) const {
    for (int i = 0; i < 2; i++) mbarrier_init(arrived + i, 1, where);
    fence_mbarrier_init_release_cluster();
  }
  // By one thread of the group, before it sends anything of the step.
  __device__ __forceinline__ void expect(Where where = Where::current()) const {
    mbarrier_arrive_expect_tx(barrier(), (unsigned)NP * 4, where);
  }
  // A quad, to `to` in the blocks first, first + step, ...
  __device__ __forceinline__ void send(float* to, const float (&quad)[4], int first, int step,
                                       Where where = Where::current()) const {
#pragma unroll 1
    for (int r = first; r < ranks; r += step)
      st_async_shared_cluster(to, quad, barrier(), (unsigned)r, where);
  }
  // By all threads: until the row of the step is there.
  __device__ __forceinline__ void end_step(Where where = Where::current()) {
    unsigned polls = 0;
    while (!mbarrier_try_wait_parity(barrier(), number / 2 % 2, where)) poll_again(polls);
    number++;
  }
};

}  // namespace lsnn::cuda
