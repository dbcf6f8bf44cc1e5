// Cycles of the phases of a step in the kernels of the paper's network, in builds with LSNN_STAMPS.
// The first thread of each block sums them. Other builds contain nothing of it.
#pragma once
#include "ptx.cuh"

namespace lsnn::cuda {

enum Stamped { forward_stamps, backward_stamps, n_stamped };
inline constexpr int most_phases = 6;

#if defined(LSNN_STAMPS) && LSNN_NVCC

// Steps, then cycles of each phase, of all blocks.
static __device__ unsigned long long stamped[n_stamped][1 + most_phases];

// The host's compiler, which reads templates, does not know clock64().
static __device__ __forceinline__ long long read_clock() { return clock64(); }

template <Stamped kernel> class Stamps {
 public:
  __device__ __forceinline__ Stamps() : last_(read_clock()) {}
  // The phase ends here.
  __device__ __forceinline__ void end(int phase) {
    const long long now = read_clock();
    sums_[1 + phase] += now - last_;
    last_ = now;
  }
  __device__ __forceinline__ void end_step(int phase) {
    end(phase);
    sums_[0]++;
  }
  __device__ __forceinline__ void store() const {
    for (int i = 0; i <= most_phases && threadIdx.x == 0; i++)
      atomicAdd(&stamped[kernel][i], (unsigned long long)sums_[i]);
  }

 private:
  long long last_, sums_[1 + most_phases] = {};
};

#else

template <Stamped> struct Stamps {
  __device__ __forceinline__ void end(int) {}
  __device__ __forceinline__ void end_step(int) {}
  __device__ __forceinline__ void store() const {}
};

#endif

}  // namespace lsnn::cuda
