#include "spike_product.cuh"

namespace lsnn::cuda {

void launch_spike_product(const SpikeProductJob& job, void* stream) {
  const bool whole = job.N % 4 == 0 && on_boundaries(job.g, job.partial_sums);
  launch("weight gradient, tensor cores",
         {job.tiles.count() * job.tiles.slices, 32 * warps_of_product, 0, 1, stream},
         whole ? &spike_product_kernel<true> : &spike_product_kernel<false>, job);
}

}  // namespace lsnn::cuda
