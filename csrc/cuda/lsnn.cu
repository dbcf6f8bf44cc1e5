#include <iterator>
#include <type_traits>

#include "lsnn.h"
#include "lsnn_backward.cuh"
#include "lsnn_forward.cuh"
#include "lsnn_matrix_block.cuh"
#include "lsnn_matrix_cluster.cuh"
#include "run.h"

namespace lsnn::cuda {

// calls f with a compile-time constant
template <class F> static void with_constant(bool x, const F& f) {
  if (x) f(std::true_type());
  else f(std::false_type());
}

void launch_lsnn(const ForwardJob<float>& general, const Pass& pass, void* stream) {
  const ForwardArgs& f = general.f;
  const Layer& l = f.layer;
  const LsnnForward job{general,        pass.shape, (int)l.delays[0],
                        (float)l.n_ref, l.B * l.N,  l.B * words(l.N)};
  const bool whole = l.N % 4 == 0 && f.x_stride_t % 4 == 0 && f.x_stride_b % 4 == 0 &&
                     on_boundaries(f.x, f.z, f.saved.y);
  with_constant(whole, [&](auto is_whole) {
    with_constant(f.saved.y_is_bf16, [&](auto is_bf16) {
      using Y = std::conditional_t<is_bf16(), bfloat16, float>;
      using Kernel = void (*)(LsnnForward);
      static constexpr Kernel in_shared[] = {&lsnn_forward_kernel<1, true, is_whole(), Y>,
                                             &lsnn_forward_kernel<2, true, is_whole(), Y>};
      static constexpr Kernel in_global[] = {&lsnn_forward_kernel<1, false, is_whole(), Y>,
                                             &lsnn_forward_kernel<2, false, is_whole(), Y>,
                                             &lsnn_forward_kernel<3, false, is_whole(), Y>,
                                             &lsnn_forward_kernel<4, false, is_whole(), Y>};
      static_assert(std::size(in_shared) == most_warps_lsnn &&
                    std::size(in_global) == most_warps_lsnn_gather);
      const int warps = pass.shape.threads / 32;
      launch("forward, lsnn",
             {pass.blocks, pass.shape.groups * pass.shape.threads, pass.shared, 1, stream},
             (pass.design == Design::gather ? in_global : in_shared)[warps - 1], job);
    });
  });
}

// The kernel by matrices in a cluster for a layer.
using BackwardKernel = void (*)(LsnnBackward);
template <int parts> static BackwardKernel matrix_kernel_of(int64_t N) {
  constexpr int most = most_words_of_parts(parts);
  switch (words_of_kernel(N, parts)) {
    case 4: return &lsnn_matrix_kernel<4, parts>;
    case 7: return &lsnn_matrix_kernel<7, parts>;
    case 8: return &lsnn_matrix_kernel<8, parts>;
    default: return &lsnn_matrix_kernel<most, parts>;
  }
}
static BackwardKernel matrix_kernel(int64_t N, int parts) {
  return parts == 1   ? matrix_kernel_of<1>(N)
         : parts == 2 ? matrix_kernel_of<2>(N)
                      : matrix_kernel_of<exact_parts>(N);
}

std::map<std::string, std::vector<int64_t>> take_stamps() {
  std::map<std::string, std::vector<int64_t>> found;
#if defined(LSNN_STAMPS) && LSNN_NVCC
  unsigned long long all[n_stamped][1 + most_phases];
  constexpr unsigned long long zeros[n_stamped][1 + most_phases] = {};
  if (cudaMemcpyFromSymbol(all, stamped, sizeof all) != cudaSuccess ||
      cudaMemcpyToSymbol(stamped, zeros, sizeof zeros) != cudaSuccess)
    throw std::runtime_error("stamps: expected a device, got none");
  for (int i = 0; i < n_stamped; i++)
    found[i == forward_stamps ? "forward" : "backward"] = {all[i], all[i] + 1 + most_phases};
#endif
  return found;
}

int64_t lsnn_workspace(const Pass& pass) {
  return pass.blocks * items_of_block(pass.shape) * lsnn_start_numbers *
         (pass.design == Design::cluster ? threads_of_matrix : pass.shape.threads);
}
void launch_lsnn(const BackwardJob<float>& general, const Pass& pass, float* workspace,
                 void* stream) {
  const Layer& l = general.f.layer;
  const int64_t row = l.B * l.N, bytes = sizeof(float), next = pass.shape.groups;
  const LsnnBackward job{general,
                         pass.shape,
                         (int)l.delays[0],
                         (float)l.dampening,
                         (float)l.n_ref,
                         workspace,
                         row,
                         l.B * words(l.N),
                         bytes * row,
                         bytes * general.f.gz_stride_t,
                         bytes * next * general.f.gz_stride_b,
                         bytes * next * l.N};
  static constexpr BackwardKernel of_block[] = {&lsnn_backward_kernel<1>, &lsnn_backward_kernel<2>,
                                                &lsnn_backward_kernel<3>, &lsnn_backward_kernel<4>,
                                                &lsnn_backward_kernel<5>, &lsnn_backward_kernel<6>,
                                                &lsnn_backward_kernel<7>, &lsnn_backward_kernel<8>};
  static_assert(std::size(of_block) == most_warps_lsnn_backward);
  static constexpr BackwardKernel of_matrices[][most_parts_of_block] = {
      {&lsnn_block_matrix_kernel<1, 1>, &lsnn_block_matrix_kernel<1, 2>},
      {&lsnn_block_matrix_kernel<2, 1>, &lsnn_block_matrix_kernel<2, 2>},
      {&lsnn_block_matrix_kernel<3, 1>, &lsnn_block_matrix_kernel<3, 2>},
      {&lsnn_block_matrix_kernel<4, 1>, &lsnn_block_matrix_kernel<4, 2>},
      {&lsnn_block_matrix_kernel<5, 1>, &lsnn_block_matrix_kernel<5, 2>},
      {&lsnn_block_matrix_kernel<6, 1>, &lsnn_block_matrix_kernel<6, 2>},
      {&lsnn_block_matrix_kernel<7, 1>, &lsnn_block_matrix_kernel<7, 2>}};
  static_assert(std::size(of_matrices) == most_warps_block_matrix);
  const Shape& shape = pass.shape;
  const int warps = shape.threads / 32;  // of a group
  const BackwardKernel kernel = [&]() -> BackwardKernel {
    if (pass.design == Design::cluster) return matrix_kernel(l.N, shape.parts);
    return shape.parts ? of_matrices[warps - 1][shape.parts - 1] : of_block[warps - 1];
  }();
  launch(
      "backward, lsnn",
      {pass.blocks, pass.shape.groups * pass.shape.threads, pass.shared, pass.shape.ranks, stream},
      kernel, job);
}

}  // namespace lsnn::cuda
