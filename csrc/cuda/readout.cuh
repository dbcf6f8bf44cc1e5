// The leaky integrator of a given product, and its adjoint, with a thread for each item and output
// that iterates over the steps. Loads are coalesced, and loads of later steps do not wait for the
// carried value.
//
// And the readout of spikes, including the product. A block processes an item from its first step
// to its last, some steps at a time: each warp sums the spikes of a step, independent of other
// steps, and a thread for each output integrates the sums. Backwards a thread for each output
// computes dL/d(w z), then each warp dL/dz of a step, and a thread for each neuron adds to dL/dw.
#pragma once
#include "../alif_math.h"
#include "device.h"
#include "sequence.cuh"

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

inline constexpr int readout_threads = 256;

// Spikes as bits, or as numbers if they can differ from 0 and 1.
template <class T> struct ReadSpikes {
  const uint32_t* bits;  // [T,B,words(N)] or null
  const T* z;  // [T,B,N], read without bits

  // Of item b at step t.
  __device__ __forceinline__ T at(const Layer& l, int64_t t, int64_t b, int64_t n) const {
    const int64_t row = t * l.B + b;
    if (!bits) return z[row * l.N + n];
    return T(bits[row * words(l.N) + n / 32] >> n % 32 & 1);
  }
};

// Common to both directions of a readout.
template <class T> struct ReadoutJob {
  Layer layer;
  Readout readout;
  ReadSpikes<T> spikes;

  __device__ __forceinline__ void copy_weights(T* to) const {  // [N,O]; the whole block calls
    const int64_t O = readout.O;
    for (int64_t i = threadIdx.x; i < layer.N * O; i += blockDim.x)
      to[i] = ((const T*)readout.w)[i % O * readout.w_stride_o + i / O * readout.w_stride_n];
  }
  __device__ __forceinline__ int64_t row(int64_t t, int64_t b) const {
    return (t * layer.B + b) * readout.O;
  }
};

template <class T> struct ReadoutForward : ReadoutJob<T> {
  T* p;  // [T,B,O] written, with the bias
  T* last;  // [B,O] written
};
template <class T> __global__ void __launch_bounds__(readout_threads)
    readout_forward_kernel(ReadoutForward<T> job) {
  const Layer& l = job.layer;
  const int64_t O = job.readout.O;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = blockDim.x / 32;
  Arena arena(shared_memory());
  const ReadoutShared<T> shared(arena, l.N, O, false);
  const Leak<T> leak = Leak<T>::of(job.readout.k, T());
  const T *first = (const T*)job.readout.first, *bias = (const T*)job.readout.bias;
  job.copy_weights(shared.w);
  for (int64_t b = blockIdx.x; b < l.B; b += gridDim.x) {
    for (int64_t o = threadIdx.x; o < O; o += blockDim.x)
      shared.p[o] = first ? first[b * O + o] : T(0);
    for (int64_t t0 = 0; t0 < l.T; t0 += readout_steps) {
      const int64_t t1 = t0 + readout_steps < l.T ? t0 + readout_steps : l.T;
      __syncthreads();
      for (int64_t t = t0 + warp; t < t1; t += warps)
        for (int64_t o0 = 0; o0 < O; o0 += 32) {
          const int64_t o = o0 + lane;
          T sum = T(0);
          for (int64_t j0 = 0; j0 < l.N; j0 += 32) {
            const T mine = j0 + lane < l.N ? job.spikes.at(l, t, b, j0 + lane) : T(0);
            for (uint32_t some = __ballot_sync(~0u, mine != T(0)); some; some &= some - 1) {
              const int j = __ffs((int)some) - 1;
              const T z = __shfl_sync(~0u, mine, j);
              if (o < O) sum = sum + shared.w[(j0 + j) * O + o] * z;
            }
          }
          if (o < O) shared.sum[(t - t0) * O + o] = sum;
        }
      __syncthreads();
      for (int64_t o = threadIdx.x; o < O; o += blockDim.x) {
        T p = shared.p[o];
        for (int64_t t = t0; t < t1; t++) {
          p = integrate(leak, p, shared.sum[(t - t0) * O + o]);
          job.p[job.row(t, b) + o] = bias ? p + bias[o] : p;
        }
        shared.p[o] = p;
      }
    }
    for (int64_t o = threadIdx.x; o < O; o += blockDim.x) job.last[b * O + o] = shared.p[o];
  }
}

template <class T> struct ReadoutBackward : ReadoutJob<T> {
  BackwardArgs f;  // gp, gp_last, gp_first and gz of it are read here
  T* gz;  // [T,B,N] written: dL/dz, that of f included
  T* partial_sums;  // [blocks,N O + O] of dL/dw [N,O] and dL/dbias, or null
};
template <class T> __global__ void __launch_bounds__(readout_threads)
    readout_backward_kernel(ReadoutBackward<T> job) {
  const Layer& l = job.layer;
  const BackwardArgs& f = job.f;
  const int64_t O = job.readout.O, W = words(l.N), n_w = l.N * O;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = blockDim.x / 32;
  Arena arena(shared_memory());
  const ReadoutShared<T> shared(arena, l.N, O, true);
  const Leak<T> leak = Leak<T>::of(job.readout.k, T());
  const T *gp = (const T*)f.gp, *gp_last = (const T*)f.gp_last, *outside = (const T*)f.gz;
  job.copy_weights(shared.w);
  for (int64_t i = threadIdx.x; i < n_w; i += blockDim.x) shared.gw[i] = T(0);
  for (int64_t o = threadIdx.x; o < O; o += blockDim.x) shared.gbias[o] = T(0);
  for (int64_t b = blockIdx.x; b < l.B; b += gridDim.x) {
    for (int64_t o = threadIdx.x; o < O; o += blockDim.x)
      shared.p[o] = gp_last ? gp_last[b * O + o] : T(0);
    for (int64_t t1 = l.T, t0; t1 > 0; t1 = t0) {
      t0 = t1 > readout_steps ? t1 - readout_steps : 0;
      __syncthreads();
      for (int64_t i = threadIdx.x; job.spikes.bits && i < (t1 - t0) * W; i += blockDim.x)
        shared.bits[i] = job.spikes.bits[((t0 + i / W) * l.B + b) * W + i % W];
      for (int64_t o = threadIdx.x; o < O; o += blockDim.x) {
        T of_p = shared.p[o], of_bias = shared.gbias[o];
        for (int64_t t = t1 - 1; t >= t0; t--) {
          const T g = gp ? gp[job.row(t, b) + o] : T(0);
          of_bias = of_bias + g;
          of_p = of_p + g;
          shared.sum[(t - t0) * O + o] = integrate_adjoint(leak, of_p);
        }
        shared.p[o] = of_p;
        shared.gbias[o] = of_bias;
      }
      __syncthreads();
      for (int64_t t = t0 + warp; t < t1; t += warps)
        for (int64_t n = lane; n < l.N; n += 32) {
          T sum =
              outside ? outside[t * f.gz_stride_t + b * f.gz_stride_b + n * f.gz_stride_n] : T(0);
          for (int64_t o = 0; o < O; o++)
            sum = fma_(shared.w[n * O + o], shared.sum[(t - t0) * O + o], sum);
          job.gz[(t * l.B + b) * l.N + n] = sum;
        }
      for (int64_t n = threadIdx.x; job.partial_sums && n < l.N; n += blockDim.x)
        for (int64_t t = t1 - 1; t >= t0; t--) {
          const T z = job.spikes.bits ? T(shared.bits[(t - t0) * W + n / 32] >> n % 32 & 1)
                                      : job.spikes.at(l, t, b, n);
          for (int64_t o = 0; z != T(0) && o < O; o++)
            shared.gw[n * O + o] = fma_(z, shared.sum[(t - t0) * O + o], shared.gw[n * O + o]);
        }
    }
    for (int64_t o = threadIdx.x; o < O; o += blockDim.x) ((T*)f.gp_first)[b * O + o] = shared.p[o];
  }
  if (!job.partial_sums) return;
  __syncthreads();
  T* to = job.partial_sums + blockIdx.x * (n_w + O);
  for (int64_t i = threadIdx.x; i < n_w + O; i += blockDim.x)
    to[i] = i < n_w ? shared.gw[i] : shared.gbias[i - n_w];
}

// Sums over the blocks, in order.
template <class T> struct ReadoutSums {
  const T* partial_sums;  // [n_partial_sums,N O + O]
  int64_t n_partial_sums, N, O;
  T *gw, *gbias;  // [O,N], [O] written, or null
};
template <class T> __global__ void __launch_bounds__(readout_threads)
    readout_sums_kernel(ReadoutSums<T> job) {
  const int64_t n_w = job.N * job.O, n = n_w + job.O;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
       i += (int64_t)gridDim.x * blockDim.x) {
    T total = T(0);
    for (int64_t s = 0; s < job.n_partial_sums; s++) total = total + job.partial_sums[s * n + i];
    if (i >= n_w) {
      if (job.gbias) job.gbias[i - n_w] = total;
    } else if (job.gw) {
      job.gw[i % job.O * job.N + i / job.O] = total;
    }
  }
}

}  // namespace lsnn::cuda
