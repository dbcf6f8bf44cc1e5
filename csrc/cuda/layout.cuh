// The layer as packed on the device by pack(): padded, with each synapse under its delay.
#pragma once
#include "../alif_math.h"
#include "plan.h"
#include "quad.cuh"
#include "shared.h"

namespace lsnn::cuda {

// some sigma, p, eta or first r is not 0
enum Flag : uint32_t { SYNAPSE = 1, COUPLING = 2, CURRENT = 4, REFRACTORY = 8 };

template <class T> struct Packed {
  T* w;  // [S,N,NP] w_jk of the synapses that act with delays[s], else 0
  T* k;  // [n_coefficients,NP] padded with valid values
  uint32_t* flags;  // [1]
  int* delays;  // [S]
  int* lengths;  // [B], or null: all T

  // kept: [packed_numbers()] memory of all but the lengths, or null: of the arena.
  Packed(Arena& m, const Layer& l, void* kept) {
    w = kept ? (T*)kept : m.take<T>(packed_numbers(l));
    k = w + l.S * l.N * padded(l.N);
    flags = (uint32_t*)(k + n_coefficients * padded(l.N));
    delays = (int*)flags + 1;
    lengths = l.lengths ? m.take<int>(l.B) : nullptr;
  }
  LSNN_METHOD int length(const Layer& l, int64_t b) const {  // steps of item b
    return lengths ? lengths[b] : (int)l.T;
  }
};

// The smallest delay; arbitrary without weights.
template <class T> LSNN_DEVICE int first_delay(const Packed<T>& p, const Layer& l) {
  return l.S ? p.delays[0] : 0;
}

// The coefficient of neuron n, with the same roundings as in torch.
template <class T> LSNN_DEVICE T value_of(const Row& row, int64_t n) {
  if (!row.tensor) return T(row.number);
  T x = ((const T*)row.tensor)[n * row.stride];
  if (row.dt > 0) x = exp_(T(1) / x * T(-row.dt));
  return row.sign < 0 ? T(row.number) - x : x;
}

inline constexpr int delays_at_once = 64;
template <class T> struct PackJob {
  Layer layer;
  Packed<T> p;
  const void* first_r;  // [B,N] or null: zeros
  HostCoefficients host;
  int S0, n_delays;  // this launch packs delays [S0, S0 + n_delays)
  int delays[delays_at_once];
};

// A warp for each row of weights, whose loads overlap. Block 0 packs the coefficients; with a first
// r all blocks look for refractory neurons, and the flags are cleared before the launch.
inline constexpr int pack_threads = 256;
template <class T>
__global__ void __launch_bounds__(pack_threads) pack_kernel(PackJob<T> job) {
  const Layer& l = job.layer;
  const int N = (int)l.N, NP = (int)padded(l.N), rows = job.n_delays * N,
            threads = int(gridDim.x * blockDim.x),
            first = int(blockIdx.x * blockDim.x + threadIdx.x);
  for (int row = first / 32; row < rows; row += threads / 32) {
    const int s = row / N, j = row % N;
    const T* from = matrix<T>(l, job.S0 + s) + j * l.w_stride_j;
    T* to = job.p.w + ((int64_t)job.S0 * N + row) * NP;
    constexpr int at_once = 8;
    for (int n0 = first % 32; n0 < NP; n0 += 32 * at_once) {
      T x[at_once];
#pragma unroll
      for (int i = 0; i < at_once; i++) {
        const int n = n0 + 32 * i;
        x[i] = n < N ? from[n * l.w_stride_k] : T(0);
      }
#pragma unroll
      for (int i = 0; i < at_once; i++) {
        const int n = n0 + 32 * i;
        const bool has_synapse = n < N && acts(l, j, n, job.delays[s]);
        if (n < NP) to[n] = has_synapse ? x[i] : T(0);
      }
    }
  }
  if (first < job.n_delays) job.p.delays[job.S0 + first] = job.delays[first];
  if (job.S0 || (blockIdx.x && !job.first_r)) return;

  uint32_t flags = 0;
  for (int n = threadIdx.x; blockIdx.x == 0 && n < NP; n += blockDim.x)
#pragma unroll
    for (int c = 0; c < n_coefficients; c++) {
      // Padding neither fires nor divides by 0.
      const T x = n >= N                   ? T(c == THETA || c == WIDTH)
                  : job.host.zero >> c & 1 ? T(0)
                  : job.host.made          ? value_of<T>(job.host.rows[c], n)
                                           : ((const T*)l.coefficients)[c * N + n];
      if (job.host.made && n < N) ((T*)job.host.made)[c * N + n] = x;
      job.p.k[c * NP + n] = x;
      if (x != T(0)) flags |= c == SIGMA ? +SYNAPSE : c == P ? +COUPLING : c == ETA ? +CURRENT : 0;
    }
#pragma unroll 4
  for (int64_t i = first; job.first_r && i < l.B * N; i += threads)
    if (((const T*)job.first_r)[i] != T(0)) flags |= REFRACTORY;
  uint32_t found = 0;
#pragma unroll
  for (uint32_t flag = SYNAPSE; flag <= REFRACTORY; flag *= 2)
    if (__syncthreads_or(flags & flag)) found |= flag;
  if (threadIdx.x) return;
  if (!job.first_r) *job.p.flags = found;
  else if (found) atomicOr(job.p.flags, found);
}

template <class T> void pack(const Layer& l, const void* first_r, const HostCoefficients& host,
                             const Packed<T>& p, void* stream) {
  PackJob<T> job{l, p, first_r, host, 0, 0, {}};
  if (first_r) clear(p.flags, sizeof *p.flags, stream);
  // At least once, for the coefficients and the flags.
  for (bool more = true; more; job.S0 += delays_at_once) {
    more = job.S0 + delays_at_once < l.S;
    job.n_delays = int(l.S - job.S0 < delays_at_once ? l.S - job.S0 : delays_at_once);
    for (int s = 0; s < job.n_delays; s++) job.delays[s] = (int)l.delays[job.S0 + s];
    const int64_t rows = job.n_delays * l.N, numbers = first_r ? l.B * l.N / 8 : 0,
                  blocks = ((rows * 32 > numbers ? rows * 32 : numbers) + pack_threads - 1) /
                           pack_threads;
    const int64_t some = blocks < 1 ? 1 : blocks < 1024 ? blocks : 1024;
    launch("packing the layer", {some, pack_threads, 0, 1, stream}, &pack_kernel<T>, job);
  }
}

// The Spec of a kernel, from the flags on the device and the arguments.
template <class Spec> struct Known;
template <> struct Known<PaperSpec> {
  LSNN_DEVICE PaperSpec spec(const Layer& l, uint32_t flags, unsigned) {
    return {{l.n_ref > 0 || (flags & REFRACTORY), false}};
  }
};
template <> struct Known<GeneralSpec> {
  LSNN_DEVICE GeneralSpec spec(const Layer& l, uint32_t flags, unsigned want) {
    return {l.model,
            l.surrogate,
            l.smooth,
            (flags & SYNAPSE) || (want >> SIGMA & 1),
            (flags & COUPLING) != 0,
            (flags & CURRENT) != 0,
            l.n_ref > 0 || (flags & REFRACTORY),
            is_cut(l),
            want};
  }
};

// The paper's kernels also require an aligned layer, with full quads on their boundaries in every
// array, and no traces. If the host does not know whether sigma, p and eta are 0, the flags on the
// device do: then both kernels are launched and the wrong one returns immediately, so that the host
// never synchronizes.
inline constexpr unsigned no_terms = 1u << SIGMA | 1u << P | 1u << ETA;
inline bool may_be_paper(const Layer& l, unsigned want) {
  return l.N % 4 == 0 &&
         PaperSpec::fits({l.model, l.surrogate, l.smooth, false, false, false, false, false, want});
}
template <class... Pointers> bool on_boundaries(Pointers... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}
inline bool is_aligned(const ForwardArgs& f) {
  return may_be_paper(f.layer, 0) && f.x_stride_t % 4 == 0 && f.x_stride_b % 4 == 0 && !f.trace_v &&
         !f.trace_a && !f.trace_A && on_boundaries(f.x, f.z, f.saved.y);
}
inline bool is_aligned(const BackwardArgs& f) {
  const bool whole_gz =
      !f.gz || (f.gz_stride_n == 1 && f.gz_stride_t % 4 == 0 && f.gz_stride_b % 4 == 0);
  return may_be_paper(f.layer, f.want) && whole_gz && !f.gv && !f.ga && !f.gA &&
         on_boundaries(f.gz, f.gx, f.saved.y);
}
template <class Spec> inline constexpr bool is_paper = false;
template <> inline constexpr bool is_paper<PaperSpec> = true;
template <class Spec> LSNN_DEVICE bool wrong_kernel(bool both, uint32_t flags) {
  const bool general = flags & (SYNAPSE | COUPLING | CURRENT);
  return both && general == is_paper<Spec>;
}

}  // namespace lsnn::cuda
