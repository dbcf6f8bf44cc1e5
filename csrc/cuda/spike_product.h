// The launch of the weight gradient by tensor cores, see spike_product.cuh.
#pragma once
#include "plan.h"

namespace lsnn::cuda {

struct SpikeProductJob {
  BackwardArgs f;
  SpikeTiles tiles;
  int64_t delay;
  float* partial_sums;  // [slices,N,N]
};

void launch_spike_product(const SpikeProductJob&, void* stream);

}  // namespace lsnn::cuda
