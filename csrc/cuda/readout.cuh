// The leaky integrator of a product that was made elsewhere, and its adjoint: a thread to an item
// and output, which walks over the steps. Neighbouring threads read neighbouring numbers, and loads
// of later steps need not wait for what is carried.
#pragma once
#include "../alif_math.h"
#include "device.h"

namespace lsnn::cuda {

inline constexpr int leaky_threads = 128;  // of a block

template <class T> __global__ void __launch_bounds__(leaky_threads)
    leaky_forward_kernel(LeakyForward f) {
  const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= f.n) return;
  const Leak<T> leak = Leak<T>::of(f.k, T());
  const T* __restrict__ x = (const T*)f.x + c;
  T* __restrict__ out = (T*)f.p + c;
  T p = f.first ? ((const T*)f.first)[c] : T(0);
#pragma unroll 8
  for (int64_t t = 0; t < f.T; t++) {
    p = integrate(leak, p, x[t * f.n]);
    out[t * f.n] = p;
  }
  ((T*)f.last)[c] = p;
}

template <class T> __global__ void __launch_bounds__(leaky_threads)
    leaky_backward_kernel(LeakyBackward f) {
  const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= f.n) return;
  const Leak<T> leak = Leak<T>::of(f.k, T());
  const T* __restrict__ gp = (const T*)f.gp + c;
  T* __restrict__ gx = (T*)f.gx + c;
  T of_p = f.gp_last ? ((const T*)f.gp_last)[c] : T(0);
#pragma unroll 8
  for (int64_t t = f.T - 1; t >= 0; t--) {
    of_p = of_p + gp[t * f.n];
    gx[t * f.n] = integrate_adjoint(leak, of_p);
  }
  ((T*)f.gp_first)[c] = of_p;
}

}  // namespace lsnn::cuda
