#include "linear.cuh"
#include "run.h"
#include "spike_product.h"
#include "weight_gradient.cuh"

namespace lsnn::cuda {
namespace {

SpikeTiles tiles_of(const Linear& l, const Device& device) {
  return spike_tiles(device, l.I, l.N, l.R);
}

}  // namespace

int64_t linear_workspace(const Linear& l, const Device& device, bool backward) {
  const int64_t numbers = backward ? tiles_of(l, device).slices * l.N : padded(l.N);
  return l.I * numbers * (int64_t)sizeof(float);
}

void linear_forward(const Linear& l, const Device& device, void* workspace, void* stream) {
  if (l.R == 0 || l.N == 0) return;
  const LinearJob job{l, static_cast<float*>(workspace)};
  auto blocks = [](int64_t n, int each) { return (n + each - 1) / each; };
  if (l.I)
    launch("projection, transposed weights",
           {blocks(l.I * padded(l.N), linear_threads), linear_threads, 0, 1, stream},
           &linear_transpose_kernel, job);
  const int64_t most = (int64_t)device.sms * (2048 / linear_threads),
                needed = blocks(l.R, linear_warps);
  const bool whole = l.N % 4 == 0 && on_boundaries(l.y);
  auto* kernel = l.N > 128
                     ? (whole ? &linear_forward_kernel<2, true> : &linear_forward_kernel<2, false>)
                     : (whole ? &linear_forward_kernel<1, true> : &linear_forward_kernel<1, false>);
  launch("projection of bits", {needed < most ? needed : most, linear_threads, 0, 1, stream},
         kernel, job);
}

void linear_backward(const Linear& l, const Device& device, void* workspace, void* stream) {
  const int64_t n = l.I * l.N;
  if (n == 0) return;
  if (l.R == 0) return clear(l.gw, n * (int64_t)sizeof(float), stream);
  const SpikeTiles tiles = tiles_of(l, device);
  float* sums = static_cast<float*>(workspace);
  launch_spike_product({l.bits, static_cast<const float*>(l.g), l.R, l.I, l.N, tiles, sums},
                       stream);
  SumJob<float> sum{sums, static_cast<float*>(l.gw), n, n, tiles.slices, 0, 0, 0};
  sum.transposed = l.I;
  sum_partial("projection, sum of slices", sum, stream);
}

}  // namespace lsnn::cuda
