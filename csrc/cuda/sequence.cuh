// Common to the forward and backward kernels of a whole sequence. A group of warps processes one
// batch item from the first step to the last, then the next one; a block has several groups. The
// design is the location of the weight rows:
//
//   block     in shared memory, copied once
//   gather    in global memory, served by the caches: any number of neurons
//   cluster   in the shared memory of the `ranks` blocks of a cluster, each a slice of the neurons;
//             only backward
#pragma once
#include "neurons.cuh"

namespace lsnn::cuda {

// The quad at `column` of the slice; empty beyond its end.
LSNN_DEVICE Cell cell_of(const Slice& slice, const Layer& l, int64_t b, int column) {
  return Cell(l, b, column < 32 * slice.words ? (int64_t)slice.neuron + column : l.N);
}

// The items of a group: first, first + step, ...
struct Share {
  int64_t first, step;

  LSNN_DEVICE Share mine(const Shape& shape, const Group& group) {
    const int64_t team = blockIdx.x / shape.ranks, teams = gridDim.x / shape.ranks;
    return {team * shape.groups + group.id, teams * shape.groups};
  }
};

// Lists the set bits of words [first, first + 8) of n_words, ascending, as numbers of neurons, and
// returns their number. Called by full warps.
template <class Words> LSNN_DEVICE int list_neurons(const Words& word_at, int first, int n_words,
                                                    int lane, uint16_t* list) {
  constexpr int most = list_size / 32;
  uint32_t word[most];  // all loads before the first store, so that they overlap
#pragma unroll
  for (int i = 0; i < most; i++) word[i] = first + i < n_words ? word_at(first + i) : 0;
  int n = 0;
  __syncwarp();  // the warp has read the previous list
#pragma unroll
  for (int i = 0; i < most; i++) {
    if (word[i] >> lane & 1)
      list[n + __popc(word[i] & ((1u << lane) - 1))] = (uint16_t)(32 * (first + i) + lane);
    n += __popc(word[i]);
  }
  __syncwarp();
  return n;
}

// Weight rows that are loaded together, so that loads overlap, and added in the order of (1).
template <class T> struct RowBatch {
  static constexpr int at_once = 4;
  Quad<T> row[at_once];

  // row_at(i): the quad of row i; only the first n of them are read.
  template <class RowAt> __device__ __forceinline__ void load(int n, const RowAt& row_at) {
#pragma unroll
    for (int i = 0; i < at_once; i++)
      if (i < n) row[i] = row_at(i);
  }
  __device__ __forceinline__ void add_to(Quad<T>& sum, int n) const {
#pragma unroll
    for (int i = 0; i < at_once; i++)
#pragma unroll
      for (int q = 0; q < 4; q++)
        if (i < n) sum[q] = sum[q] + row[i][q];
  }
};

// Calls add(j, z[j]) for nonzero spikes in ascending order; z: [N] real numbers in global memory,
// or null: zeros. Called by full warps.
template <class T, class Add>
LSNN_DEVICE void for_real_spikes(const T* z, int N, int lane, const Add& add) {
  for (int j0 = 0; z && j0 < N; j0 += 32) {
    const T mine = j0 + lane < N ? z[j0 + lane] : T(0);
    for (uint32_t some = __ballot_sync(~0u, mine != T(0)); some; some &= some - 1) {
      const int j = __ffs((int)some) - 1;
      add(j0 + j, __shfl_sync(~0u, mine, j));
    }
  }
}

// Copies n packed weights, a multiple of 4, to shared memory. All copies of a thread are in flight
// together. Called by all threads of the block, which need a barrier afterwards.
template <class T> LSNN_DEVICE void copy_weights(T* to, const T* from, int n,
                                                 Where where = Where::current()) {
  constexpr int piece = 16 / sizeof(T);
  for (int i = piece * threadIdx.x; i < n; i += piece * blockDim.x)
    cp_async_shared_global<16>(to + i, from + i, where);
  cp_async_commit_group(where);
  cp_async_wait_group<0>(where);
}

}  // namespace lsnn::cuda
