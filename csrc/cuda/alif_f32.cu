#include "launch.cuh"

namespace lsnn::cuda {

const Entry entry_f32 = entry_of<float>;

int find_clusters(int ranks, const Device& device) {
  return clusters_at_once(
      {(int64_t)device.teams(ranks) * ranks, most_threads_backward(true), device.shared, ranks},
      &backward_kernel<float, GeneralSpec, ClusterGradients<float>, 1, true>);
}
int find_compiled_capability() {
  return compiled_for(&backward_kernel<float, GeneralSpec, BlockGradients<float>, 1, true>);
}

}  // namespace lsnn::cuda
