#include "readout.cuh"
#include "run.h"

namespace lsnn::cuda {
namespace {

Launch columns(int64_t n, void* stream) {
  return {(n + leaky_threads - 1) / leaky_threads, leaky_threads, 0, 1, stream};
}

}  // namespace

void leaky_forward(const LeakyForward& f, Storage storage, void* stream) {
  if (f.n == 0) return;
  const auto kernel =
      storage == Storage::f64 ? &leaky_forward_kernel<double> : &leaky_forward_kernel<float>;
  launch("leaky readout, forward", columns(f.n, stream), kernel, f);
}
void leaky_backward(const LeakyBackward& f, Storage storage, void* stream) {
  if (f.n == 0) return;
  const auto kernel =
      storage == Storage::f64 ? &leaky_backward_kernel<double> : &leaky_backward_kernel<float>;
  launch("leaky readout, backward", columns(f.n, stream), kernel, f);
}

}  // namespace lsnn::cuda
