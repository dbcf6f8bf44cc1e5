#include "spike_product.cuh"

namespace lsnn::cuda {

void launch_spike_product(const SpikeProductJob& job, void* stream) {
  using Kernel = void (*)(SpikeProductJob);
  static constexpr Kernel kernels[exact_parts][2] = {
      {&spike_product_kernel<false, 1>, &spike_product_kernel<true, 1>},
      {&spike_product_kernel<false, 2>, &spike_product_kernel<true, 2>},
      {&spike_product_kernel<false, 3>, &spike_product_kernel<true, 3>}};
  const bool whole = job.N % 4 == 0 && on_boundaries(job.g, job.partial_sums);
  launch("weight gradient, tensor cores",
         {job.tiles.count() * job.tiles.slices, 32 * warps_of_product, 0, 1, stream},
         kernels[job.tiles.parts - 1][whole], job);
}

}  // namespace lsnn::cuda
