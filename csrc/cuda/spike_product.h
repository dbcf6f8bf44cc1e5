// The launch of a weight gradient by tensor cores, see spike_product.cuh.
#pragma once
#include "plan.h"

namespace lsnn::cuda {

struct SpikeProductJob {
  const uint32_t* bits;  // [K,words(M)] spikes of K items of steps
  const float* g;  // [K,N] the right factor
  int64_t K, M, N;
  SpikeTiles tiles;
  float* partial_sums;  // [slices,M,N]
};

void launch_spike_product(const SpikeProductJob&, void* stream);

}  // namespace lsnn::cuda
