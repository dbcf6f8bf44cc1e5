// The leaky integrator of a given product, and its adjoint, with a thread for each item and output
// that iterates over the steps. Loads are coalesced, and loads of later steps do not wait for the
// carried value.
//
// And the readout of spikes, including the product. A block processes an item from its first step
// to its last, some steps at a time: each warp sums the spikes of some steps, whose words it loads
// together, and a thread for each output integrates the sums. Backwards a thread for each output
// computes dL/d(w z), then each warp dL/dz of a word of neurons and some steps, with the weights of
// a lane's neuron in registers, and a thread for each neuron adds to dL/dw.
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

inline constexpr int readout_threads = 256, readout_warps = readout_threads / 32;
inline constexpr int steps_of_warp = readout_steps / readout_warps;  // at a time

// Spikes as bits, or as numbers if they can differ from 0 and 1.
template <class T> struct ReadSpikes {
  const uint32_t* bits;  // [T,B,words(N)] or null
  const T* z;  // [T,B,N], read without bits
};

// Common to both directions of a readout.
template <class T> struct ReadoutJob {
  Layer layer;
  Readout readout;
  ReadSpikes<T> spikes;

  __device__ __forceinline__ void copy_weights(T* to) const {  // the whole block calls
    const int N = (int)layer.N, O = (int)readout.O, stride = (int)stride_of_weights(O);
    for (int n = threadIdx.x; n < N; n += blockDim.x) {
      const T* from = (const T*)readout.w + n * readout.w_stride_n;
#pragma unroll 8
      for (int o = 0; o < O; o++) to[n * stride + o] = from[o * readout.w_stride_o];
    }
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
  const int N = (int)l.N, O = (int)job.readout.O, W = (int)words(N), stride = stride_of_weights(O),
            row = (int)padded(O);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  Arena arena(shared_memory());
  const ReadoutShared<T> shared(arena, N, O, false);
  const Leak<T> leak = Leak<T>::of(job.readout.k, T());
  const T *first = (const T*)job.readout.first, *bias = (const T*)job.readout.bias;
  job.copy_weights(shared.w);
  for (int64_t b = blockIdx.x; b < l.B; b += gridDim.x) {
    for (int o = threadIdx.x; o < O; o += blockDim.x) shared.p[o] = first ? first[b * O + o] : T(0);
    for (int64_t t0 = 0; t0 < l.T; t0 += readout_steps) {
      const int steps = int(l.T - t0 < readout_steps ? l.T - t0 : readout_steps);
      __syncthreads();
      for (int o0 = 0; o0 < O; o0 += 32) {
        const int o = o0 + lane;
        T sum[steps_of_warp] = {};
        auto add = [&](T& to, int j, T z) {
          if (o < O) to = to + shared.w[j * stride + o] * z;
        };
        for (int w0 = 0; job.spikes.bits && w0 < W; w0 += 32) {
          uint32_t word[steps_of_warp];
#pragma unroll
          for (int i = 0; i < steps_of_warp; i++) {
            const int t = warp + i * readout_warps;
            word[i] = t < steps && w0 + lane < W
                          ? job.spikes.bits[((t0 + t) * l.B + b) * W + w0 + lane]
                          : 0;
          }
          const int n_words = W - w0 < 32 ? W - w0 : 32;
#pragma unroll
          for (int i = 0; i < steps_of_warp; i++)
            for (int w = 0; w < n_words; w++)
              for (uint32_t some = __shfl_sync(~0u, word[i], w); some; some &= some - 1)
                add(sum[i], 32 * (w0 + w) + __ffs((int)some) - 1, T(1));
        }
#pragma unroll
        for (int i = 0; i < steps_of_warp; i++) {
          const int t = warp + i * readout_warps;
          if (t >= steps) break;
          if (!job.spikes.bits)
            for_real_spikes(job.spikes.z + ((t0 + t) * l.B + b) * N, N, lane,
                            [&](int j, T z) { add(sum[i], j, z); });
          if (o < O) shared.sum[t * row + o] = sum[i];
        }
      }
      __syncthreads();
      for (int o = threadIdx.x; o < O; o += blockDim.x) {
        T p = shared.p[o];
        const T constant = bias ? bias[o] : T(0);
        for (int t = 0; t < steps; t++) {
          p = integrate(leak, p, shared.sum[t * row + o]);
          job.p[job.row(t0 + t, b) + o] = bias ? p + constant : p;
        }
        shared.p[o] = p;
      }
    }
    for (int o = threadIdx.x; o < O; o += blockDim.x) job.last[b * O + o] = shared.p[o];
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
  const int N = (int)l.N, O = (int)job.readout.O, W = (int)words(N), n_w = N * O,
            stride = stride_of_weights(O), row = (int)padded(O);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  Arena arena(shared_memory());
  const ReadoutShared<T> shared(arena, N, O, true);
  const Leak<T> leak = Leak<T>::of(job.readout.k, T());
  const T *gp = (const T*)f.gp, *gp_last = (const T*)f.gp_last, *outside = (const T*)f.gz;
  job.copy_weights(shared.w);
  for (int i = threadIdx.x; i < n_w; i += blockDim.x) shared.gw[i] = T(0);
  for (int o = threadIdx.x; o < O; o += blockDim.x) shared.gbias[o] = T(0);
  for (int64_t b = blockIdx.x; b < l.B; b += gridDim.x) {
    for (int o = threadIdx.x; o < O; o += blockDim.x)
      shared.p[o] = gp_last ? gp_last[b * O + o] : T(0);
    for (int64_t t1 = l.T, t0; t1 > 0; t1 = t0) {
      t0 = t1 > readout_steps ? t1 - readout_steps : 0;
      const int steps = int(t1 - t0);
      __syncthreads();
#pragma unroll 4
      for (int i = threadIdx.x; job.spikes.bits && i < steps * W; i += blockDim.x)
        shared.bits[i] = job.spikes.bits[((t0 + i / W) * l.B + b) * W + i % W];
#pragma unroll 4
      for (int i = threadIdx.x; i < steps * row; i += blockDim.x)  // padded by zeros
        shared.sum[i] = gp && i % row < O ? gp[job.row(t0 + i / row, b) + i % row] : T(0);
      __syncthreads();
      for (int o = threadIdx.x; o < O; o += blockDim.x) {
        T of_p = shared.p[o], of_bias = shared.gbias[o];
        for (int t = steps - 1; t >= 0; t--) {
          const T g = shared.sum[t * row + o];
          of_bias = of_bias + g;
          of_p = of_p + g;
          shared.sum[t * row + o] = integrate_adjoint(leak, of_p);
        }
        shared.p[o] = of_p;
        shared.gbias[o] = of_bias;
      }
      __syncthreads();
      for (int unit = warp; unit < W * readout_warps; unit += readout_warps) {
        const int n = 32 * (unit % W) + lane, t = unit / W * steps_of_warp;
        if (t >= steps || n >= N) continue;
        T sum[steps_of_warp];
#pragma unroll
        for (int i = 0; i < steps_of_warp; i++)
          sum[i] =
              outside && t + i < steps
                  ? outside[(t0 + t + i) * f.gz_stride_t + b * f.gz_stride_b + n * f.gz_stride_n]
                  : T(0);
        for (int o = 0; o < O; o += 4) {
          Quad<T> w{};
#pragma unroll
          for (int q = 0; q < 4; q++)
            if (o + q < O) w[q] = shared.w[n * stride + o + q];
#pragma unroll
          for (int i = 0; i < steps_of_warp; i++) {
            const Quad<T>& g = quad_at(shared.sum + (t + i) * row + o);
#pragma unroll
            for (int q = 0; q < 4; q++) sum[i] = fma_(w[q], g[q], sum[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < steps_of_warp; i++)
          if (t + i < steps) job.gz[((t0 + t + i) * l.B + b) * N + n] = sum[i];
      }
      for (int n = threadIdx.x; job.partial_sums && n < N; n += blockDim.x) {
        if (!job.spikes.bits)
          for (int t = steps - 1; t >= 0; t--) {
            const T z = job.spikes.z[((t0 + t) * l.B + b) * N + n];
            for (int o = 0; z != T(0) && o < O; o++)
              shared.gw[n * O + o] = fma_(z, shared.sum[t * row + o], shared.gw[n * O + o]);
          }
        uint32_t fired = 0;  // bit t: at step t
        for (int t = 0; job.spikes.bits && t < steps; t++)
          fired |= (shared.bits[t * W + n / 32] >> n % 32 & 1) << t;
        for (int t; fired; fired ^= 1u << t) {
          t = 31 - __clz((int)fired);
          for (int o = 0; o < O; o++)
            shared.gw[n * O + o] = shared.gw[n * O + o] + shared.sum[t * row + o];
        }
      }
    }
    for (int o = threadIdx.x; o < O; o += blockDim.x) ((T*)f.gp_first)[b * O + o] = shared.p[o];
  }
  if (!job.partial_sums) return;
  __syncthreads();
  T* to = job.partial_sums + (int64_t)blockIdx.x * (n_w + O);
  for (int i = threadIdx.x; i < n_w + O; i += blockDim.x)
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
