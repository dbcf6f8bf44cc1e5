// Rows of dL/dc that the blocks of a cluster compute together; each block receives all of a row.
//
// The warps of a cluster that share items run through the steps in the same order, numbered
// n = 0, 1, ... over all their items. Each stores its part of row n into every block by st.async,
// and the hardware counts the bytes in an mbarrier of that block, number n % barriers. Its phase of
// step n ends when all bytes of row n have arrived, and one arrival of a thread of the block, which
// announces their number (begin_step). wait(n) returns when that phase has ended: then row n is
// complete and visible. No flags are polled in memory, and nothing is copied.
//
// Invariant. When bytes or the arrival of step n + barriers reach an mbarrier,
//   (a) its phase of step n has ended: else bytes of two steps would be counted in one phase;
//   (b) no thread waits for step n: wait() only tests the parity of the phase, which is the same
//       again two phases later, so that the wait would not see the end of its phase.
//
// Order of a warp. With two barriers it waits for a row before it sends the next one; with four it
// waits one step later, and computes meanwhile:
//
//   two    send n                wait n                  send n+1          wait n+1  send n+2
//   four   send n  wait n-1  send n+1  wait n  send n+2  wait n+1  send n+3  wait n+2  send n+4
//
// Proof. wait(m) returns only after every warp has sent row m, as each part is counted.
//   two    Row n + 2 is sent after wait(n + 1). So every warp has sent n + 1, and before that
//          returned from wait(n).
//   four   Row n + 4 is sent after wait(n + 2). So every warp has sent n + 2, and before that
//          returned from wait(n). Three barriers are too few: row n + 3 is sent after wait(n + 1),
//          when every warp has sent n + 1, but some may still wait for n.
// That all warps have returned from wait(n) is (b); it implies (a), as every block with neurons has
// such a warp. The arriving thread belongs to one of them. There is no deadlock: in each warp the
// send of row n precedes wait(n), and no wait needs a later row.
//
// The callers ensure the rest. The lanes of a warp stay together. Warps that send nothing leave, or
// are held at a barrier of the group once a step. Blocks without neurons take no part. A warp ends
// with a wait for its last row: then its block has received all bytes, and may exit before others.
#pragma once
#include "device.h"
#include "shared.h"

namespace lsnn::cuda {

template <int barriers> struct ClusterRows {
  uint64_t* const mbarriers;  // [barriers]
  const int NP, ranks;  // ranks: blocks with neurons
  const bool is_first;  // the thread that arrives
  const unsigned bytes;  // that a block receives in a step
  uint32_t number = 0;  // n of the next step to send

  __device__ __forceinline__ uint64_t* mbarrier(uint32_t step) const {
    return mbarriers + step % barriers;
  }
  // Initializes the mbarriers; a barrier of the cluster has to follow. of_step: bytes that a block
  // receives in a step.
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
  // Called by each thread before it sends.
  __device__ __forceinline__ void begin_step(Where where = Where::current()) const {
    if (is_first) mbarrier_arrive_expect_tx(mbarrier(number), bytes, where);
  }
  // Sends four numbers to `to` in a block, if wanted.
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
  // Called by all threads. Step -1 is complete: an mbarrier starts in parity 0, and 2^32 is a
  // multiple of 2 barriers.
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
