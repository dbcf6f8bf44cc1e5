// The kernels of a generated neuron on a GPU, and their one argument: the boundary between
// csrc/cuda/neuron.cpp, which launches them, and cuda_threads.h, which defines them.
#pragma once
#ifdef __CUDACC_RTC__  // NVRTC has no headers
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

namespace lsnn::neuron {

inline constexpr int most_states = 16, steps_of_chunk = 16, numbers_at_once = 64;
inline constexpr int threads_of_block = 256, most_neurons_of_block = 512;

// In the order of launches; the symbols have the prefix "lsnn_".
// clang-format off
#define LSNN_NEURON_KERNELS(X)                                                      \
  X(set_numbers)      /* piece to numbers[t, t1) */                                 \
  X(pack_weights)     /* w to packed, for one delay */                              \
  X(step)             /* t = -1: before the first step */                           \
  X(sequence)         /* all steps of an item, in one block */                      \
  X(pack_bits)        /* z to bits */                                               \
  X(replay)           /* states before the steps [t, t1) of a chunk */              \
  X(adjoint)          /* t = steps: begins; t < 0: of the past spikes -1 - t */     \
  X(sequence_back)    /* the adjoint of all steps of an item, in one block */       \
  X(sum_gradients)    /* sums over the items to g_coefficients */                   \
  X(clear)            /* packed = 0 */                                              \
  X(unpack_spikes)    /* z of the steps [t, t1), which may be negative, to spikes */ \
  X(weight_gradient)  /* packed to gw, for one delay */
// clang-format on

// Letters and arrays as in csrc/alif.h; K currents, S states, C coefficients and G gradients are
// those of the neuron. Null pointers: zeros, or not wanted. An item is a sequence of the batch.
template <class T> struct Job {
  int64_t steps, B, N, D, delays_n;
  int64_t t, t1;  // the steps of this launch
  int32_t* lengths;  // [B] steps of each item, or null: all
  int32_t* delays;  // [delays_n]
  int32_t *numbers, piece[numbers_at_once];

  // The matrix of one delay: [K,N,N] from j to k, and as [N,K N] for a product, or transposed. Of
  // all delays for `sequence`, transposed for `sequence_back`.
  const T* w;
  int64_t w_stride_current, w_stride_j, w_stride_k;
  const int64_t* delay_of;  // [K,N,N] delays of the synapses, or null: all act with `delay`
  int64_t delay;
  bool autapses, existing;  // existing: only of weights other than 0
  bool is_transposed;  // of packed
  T* packed;
  T* gw;  // [K,N,N]

  // Forward.
  const T* x;  // [steps,B,K N]
  int64_t x_stride_t, x_stride_b;
  T* c;  // [B,K N] sums of (1): x of the next step, to which products are added
  const T* coefficients;  // [C,N]
  const T* first[most_states];  // [B,N]
  const T* first_z;  // [D,B,N]
  T* states[most_states];  // [B,N] of each step, and of the last one
  T* last_z;  // [D,B,N]
  T* z;  // [steps,B,N]
  T* traces[most_states];  // [steps,B,N]
  // Saved:
  T* currents;  // [steps,B,K N]
  T* carry;  // [ceil(steps / steps_of_chunk),S,B,N]
  T* number_z;  // [steps,B,N] of a neuron whose spikes are numbers
  uint32_t* bits;  // [steps,B,words]

  // Backward.
  const T* gz;  // [steps,B,N]
  int64_t gz_stride_t, gz_stride_b, gz_stride_n;
  const T* g_traces[most_states];  // [steps,B,N]
  const T* g_last[most_states];  // [B,N]
  const T* g_last_z;  // [D,B,N]
  T* replayed;  // [steps_of_chunk,S,B,N] states before the steps of a chunk
  T* d_states[most_states];  // [B,N] dL/dstates of the step before, at the end of the first state
  T* dz;  // [B,N] dL/dz of the step before: its local part, to which products are added
  T* gx;  // [steps,B,K N]
  T* g_first_z;  // [D,B,N]
  T* sums;  // [G,B,N]
  T* g_coefficients;  // [G,N]
  uint32_t want;  // bit g: gradient g is wanted
  T* spikes;  // [t1 - t,B,N]
};

// The block of a thread.
struct Block {
  int64_t index;
  int thread, threads;
  unsigned char* shared;
#ifdef __CUDACC__
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  // Of the 32 threads of a warp, all of which must call it.
  __device__ __forceinline__ uint32_t ballot(bool vote) const { return __ballot_sync(~0u, vote); }
#else  // functions of the emulator
  void (*sync)();
  uint32_t (*ballot)(bool);
#endif
};

}  // namespace lsnn::neuron
