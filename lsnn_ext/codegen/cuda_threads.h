// The kernels of cuda_job.h for a generated neuron: a thread for each neuron of an item. The source
// is compiled by NVRTC or nvcc, or by a host compiler for the emulator. A step is a class that
// generate.py writes; its functions take one neuron at a time, see rows.h.
#pragma once
#include "cuda_job.h"
#include "cuda_operators.h"
#include "values.h"

namespace lsnn::neuron {
namespace {

LSNN_FUSE_INLINE int64_t quotient(int64_t i, int64_t n) {  // of numbers >= 0
  if (((uint64_t)i | (uint64_t)n) >> 32) return i / n;
  return (uint32_t)i / (uint32_t)n;  // faster on a GPU
}

template <class Step> struct Threads {
  using T = typename Step::Number;
  static constexpr int K = Step::currents, S = Step::states, C = Step::coefficients,
                       G = Step::gradients;

  using Values = ValuesOf<Step, T>;
  LSNN_FUSE_INLINE bool is_carried(int s) { return Step::carried >> s & 1; }

  // A neuron of an item: index i of an array [B,N].
  struct Point {
    int64_t i, b, n, all;  // all: B N

    LSNN_FUSE_METHOD int64_t at(int64_t t) const { return t * all + i; }  // of [steps,B,N]
    // of current 0 in an array [steps,B,K N]
    LSNN_FUSE_METHOD int64_t at_current(int64_t t, int64_t N) const {
      return t * all * K + b * K * N + n;
    }
  };
  LSNN_FUSE_INLINE Point point(const Job<T>& job, int64_t i) {
    const int64_t b = quotient(i, job.N);
    return {i, b, i - b * job.N, job.B * job.N};
  }
  LSNN_FUSE_INLINE int64_t length(const Job<T>& job, int64_t b) {
    return job.lengths ? job.lengths[b] : job.steps;
  }
  LSNN_FUSE_INLINE T value(const T* p, int64_t at) { return p ? p[at] : T(0); }
  LSNN_FUSE_INLINE int64_t words(int64_t N) { return (N + 31) / 32; }

  LSNN_FUSE_INLINE int64_t thread_of(const Block& block) {
    return block.index * block.threads + block.thread;
  }

  // z of a step as it was saved, or before the sequence.
  LSNN_FUSE_INLINE T spike(const Job<T>& job, const Point& p, int64_t t) {
    if (t < 0) return value(job.first_z, (-1 - t) * p.all + p.i);
    if (!Step::is_spike) return job.number_z[p.at(t)];
    return T(job.bits[(t * job.B + p.b) * words(job.N) + p.n / 32] >> p.n % 32 & 1);
  }
  LSNN_FUSE_INLINE void load_coefficients(const Job<T>& job, const Point& p, Values& x) {
    for (int c = 0; c < C; c++) x.coefficient(c) = job.coefficients[c * job.N + p.n];
  }
  LSNN_FUSE_INLINE void load_currents(const Job<T>& job, const Point& p, int64_t t, Values& x) {
    const T* from = job.currents + p.at_current(t, job.N);
    for (int k = 0; k < K; k++) x.current(k) = from[k * job.N];
  }

  // ---------------------------------------------------------------------------------------- common
  LSNN_FUSE_INLINE void set_numbers(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i < job.t1 - job.t) job.numbers[job.t + i] = job.piece[i];
  }
  LSNN_FUSE_INLINE void clear(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i < job.N * K * job.N) job.packed[i] = T(0);
  }
  // The synapse from j to current k of neuron n has the index i of [N,K N].
  struct Synapse { int64_t j, k, n; };
  LSNN_FUSE_INLINE Synapse synapse(int64_t i, int64_t N) {
    const int64_t row = quotient(i, N), j = quotient(row, K);
    return {j, row - j * K, i - row * N};
  }
  LSNN_FUSE_INLINE T weight(const Job<T>& job, const Synapse& s) {
    return job.w[s.k * job.w_stride_current + s.j * job.w_stride_j + s.n * job.w_stride_k];
  }
  LSNN_FUSE_INLINE bool has_delay(const Job<T>& job, const Synapse& s) {
    return !job.delay_of || job.delay_of[(s.k * job.N + s.j) * job.N + s.n] == job.delay;
  }
  LSNN_FUSE_INLINE void pack_weights(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i >= job.N * K * job.N) return;
    const Synapse s = synapse(i, job.N);
    const bool acts = (job.autapses || s.j != s.n) && has_delay(job, s);
    const int64_t to = job.is_transposed ? (s.k * job.N + s.n) * job.N + s.j : i;
    job.packed[to] = acts ? weight(job, s) : T(0);
  }

  // --------------------------------------------------------------------------------------- forward
  LSNN_FUSE_INLINE void step(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i >= job.B * job.N) return;
    const Point p = point(job, i);
    const int64_t t = job.t, end = length(job, p.b);
    if (t >= end) return clear_step(job, p, t);
    T* const c = job.c + p.at_current(0, job.N);
    if (t < 0) {
      for (int s = 0; s < S; s++) job.states[s][i] = value(job.first[s], i);
    } else {
      const Step sizes{};
      Values x(sizes);
      load_coefficients(job, p, x);
      for (int k = 0; k < K; k++) x.current(k) = c[k * job.N];
      for (int s = 0; s < S; s++) x.state(s) = job.states[s][i];
      x.before() = t ? job.z[p.at(t - 1)] : value(job.first_z, i);
      advance(job, p, t, x);
      for (int s = 0; s < S; s++) job.states[s][i] = x.state(s);
    }
    if (t + 1 < end) {
      const T* from = job.x + (t + 1) * job.x_stride_t + p.b * job.x_stride_b + p.n;
      for (int k = 0; k < K; k++) c[k * job.N] = from[k * job.N];
      return;
    }
    store_last_z(job, p, end);
  }
  // One step from the currents, states and last spike in x; replaces the latter two.
  LSNN_FUSE_INLINE void advance(const Job<T>& job, const Point& p, int64_t t, Values& x) {
    if (job.currents)
      for (int k = 0; k < K; k++) job.currents[p.at_current(t, job.N) + k * job.N] = x.current(k);
    if (job.carry && t % steps_of_chunk == 0)
      for (int s = 0; s < S; s++) job.carry[p.at(t / steps_of_chunk * S + s)] = x.state(s);
    Step::forward(x.values);
    for (int s = 0; s < S; s++) {
      x.state(s) = x.result(s);
      if (job.traces[s]) job.traces[s][p.at(t)] = x.result(s);
    }
    x.before() = x.result(S);
    job.z[p.at(t)] = x.before();
    if (job.number_z) job.number_z[p.at(t)] = x.before();
  }
  // end: steps of the item.
  LSNN_FUSE_INLINE void store_last_z(const Job<T>& job, const Point& p, int64_t end) {
    for (int64_t back = 0; job.last_z && back < job.D; back++)
      job.last_z[p.at(back)] =
          end <= back ? value(job.first_z, p.at(back - end)) : job.z[p.at(end - 1 - back)];
  }
  // A step after the end of an item.
  LSNN_FUSE_INLINE void clear_step(const Job<T>& job, const Point& p, int64_t t) {
    const int64_t at = p.at(t);
    job.z[at] = T(0);
    if (job.number_z) job.number_z[at] = T(0);
    for (int s = 0; s < S; s++)
      if (job.traces[s]) job.traces[s][at] = T(0);
    if (job.currents)
      for (int k = 0; k < K; k++) job.currents[p.at_current(t, job.N) + k * job.N] = T(0);
    if (job.carry && t % steps_of_chunk == 0)
      for (int s = 0; s < S; s++) job.carry[p.at(t / steps_of_chunk * S + s)] = T(0);
  }
  LSNN_FUSE_INLINE void pack_bits(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    const int64_t W = words(job.N);
    if (i >= job.steps * job.B * W) return;
    const int64_t row = quotient(i, W), n0 = (i - row * W) * 32;
    uint32_t word = 0;
    for (int64_t n = n0; n < n0 + 32 && n < job.N; n++)
      word |= (uint32_t)(job.z[row * job.N + n] > T(0)) << (n - n0);
    job.bits[i] = word;
  }

  // -------------------------------------------------------------------------------------- backward
  LSNN_FUSE_INLINE void replay(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i >= job.B * job.N) return;
    const Point p = point(job, i);
    const int64_t end = length(job, p.b), last = job.t1 < end ? job.t1 : end;
    if (job.t < last) replay_chunk(job, p, job.t, last);
  }
  LSNN_FUSE_INLINE void replay_chunk(const Job<T>& job, const Point& p, int64_t first,
                                     int64_t last) {
    const Step sizes{};
    Values x(sizes);
    load_coefficients(job, p, x);
    for (int s = 0; s < S; s++)
      if (is_carried(s)) x.state(s) = job.carry[p.at(first / steps_of_chunk * S + s)];
    x.before() = spike(job, p, first - 1);
    for (int64_t t = first;; t++) {
      for (int s = 0; s < S; s++)
        if (is_carried(s)) job.replayed[p.at((t - first) * S + s)] = x.state(s);
      if (t + 1 == last) return;
      load_currents(job, p, t, x);
      x.after() = spike(job, p, t);
      Step::advance(x.values);
      for (int s = 0; s < S; s++)
        if (is_carried(s)) x.state(s) = x.result(s);
      x.before() = x.after();
    }
  }
  LSNN_FUSE_INLINE void adjoint(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i >= job.B * job.N) return;
    const Point p = point(job, i);
    const int64_t end = length(job, p.b);
    if (job.t == job.steps) begin_adjoint(job, p);
    else if (job.t >= end) clear_gradient(job, p, job.t);
    else adjoint_step(job, p, job.t, end, nullptr);
  }
  LSNN_FUSE_INLINE void begin_adjoint(const Job<T>& job, const Point& p) {
    for (int s = 0; s < S; s++) job.d_states[s][p.i] = value(job.g_last[s], p.i);
    for (int g = 0; job.want && g < G; g++) job.sums[p.at(g)] = T(0);
    job.dz[p.i] = T(0);
  }
  LSNN_FUSE_INLINE void clear_gradient(const Job<T>& job, const Point& p, int64_t t) {
    for (int k = 0; k < K; k++) job.gx[p.at_current(t, job.N) + k * job.N] = T(0);
  }
  // end: steps of the item. dc: [K N] of the item, where dL/dc is written too, or null.
  LSNN_FUSE_INLINE void adjoint_step(const Job<T>& job, const Point& p, int64_t t, int64_t end,
                                     T* dc) {
    const int64_t i = p.i;
    // dL/dz of the last state for the spikes of this step
    const int64_t back = end - 1 - t;
    const T dz = job.dz[i] + (back < job.D ? value(job.g_last_z, p.at(back)) : T(0));
    if (t < 0) {
      job.g_first_z[p.at(-1 - t)] = dz;
      job.dz[i] = T(0);
      return;
    }
    const Step sizes{};
    Values x(sizes);
    load_coefficients(job, p, x);
    load_currents(job, p, t, x);
    for (int s = 0; s < S; s++) {
      if (is_carried(s)) x.state(s) = job.replayed[p.at(t % steps_of_chunk * S + s)];
      x.d_state(s) = job.d_states[s][i] + value(job.g_traces[s], p.at(t));
    }
    x.before() = spike(job, p, t - 1);
    x.after() = spike(job, p, t);
    x.d_z() =
        dz + value(job.gz, t * job.gz_stride_t + p.b * job.gz_stride_b + p.n * job.gz_stride_n);
    if (job.want) Step::adjoint(x.values);
    else Step::adjoint_alone(x.values);
    for (int k = 0; k < K; k++) {
      job.gx[p.at_current(t, job.N) + k * job.N] = x.result(k);
      if (dc) dc[k * job.N + p.n] = x.result(k);
    }
    for (int s = 0; s < S; s++) job.d_states[s][i] = x.result(K + s);
    job.dz[i] = x.result(K + S);
    for (int g = 0; g < G; g++)
      if (job.want >> g & 1) job.sums[p.at(g)] += x.result(K + S + 1 + g);
  }

  // ------------------------------------------------------------------------------- whole sequences
  // A block for an item, a thread for each neuron.
  LSNN_FUSE_INLINE int lowest_bit(uint32_t word) {
#ifdef __CUDACC__
    return __ffs((int)word) - 1;
#else
    return __builtin_ctz(word);
#endif
  }
  // Shared memory: the spikes of the last D + 1 steps [D + 1,words], step t in row t % (D + 1). A
  // barrier ends each step. A warp that is one step ahead writes the row of D + 1 steps before.
  LSNN_FUSE_INLINE void sequence(const Job<T>& job, const Block& block) {
    const int64_t N = job.N, W = words(N), rows = job.D + 1, end = length(job, block.index);
    const Point p = {block.index * N + block.thread, block.index, block.thread, job.B * N};
    uint32_t* const ring = (uint32_t*)block.shared;
    const bool is_neuron = p.n < N;
    const Step sizes{};
    Values x(sizes);
    x.before() = T(0);
    if (is_neuron) {
      load_coefficients(job, p, x);
      for (int s = 0; s < S; s++) x.state(s) = value(job.first[s], p.i);
      x.before() = value(job.first_z, p.i);
    }
    for (int64_t t = 0; t < end; t++) {
      if (is_neuron) {
        const T* from = job.x + t * job.x_stride_t + p.b * job.x_stride_b + p.n;
        for (int k = 0; k < K; k++) x.current(k) = from[k * N];
        for (int64_t d = 0; d < job.delays_n; d++) {
          const int64_t past = t - 1 - job.delays[d];
          const T* w = job.packed + d * N * K * N + p.n;
          if (past < 0) add_numbers(job, p, past, w, x);
          else add_spikes(job, ring + past % rows * W, w, x);
        }
        advance(job, p, t, x);
      }
      const uint32_t word = block.ballot(is_neuron && x.before() > T(0));
      if (p.n % 32 == 0) {
        ring[t % rows * W + p.n / 32] = word;
        if (job.bits) job.bits[(t * job.B + p.b) * W + p.n / 32] = word;
      }
      block.sync();
    }
    if (p.n % 32 == 0 && job.bits)
      for (int64_t t = end; t < job.steps; t++) job.bits[(t * job.B + p.b) * W + p.n / 32] = 0;
    if (!is_neuron) return;
    for (int s = 0; s < S; s++) job.states[s][p.i] = x.state(s);
    store_last_z(job, p, end);
    for (int64_t t = end; t < job.steps; t++) clear_step(job, p, t);
  }
  // (1) for spikes before the sequence. w: column n of a matrix.
  LSNN_FUSE_INLINE void add_numbers(const Job<T>& job, const Point& p, int64_t past, const T* w,
                                    Values& x) {
    if (!job.first_z) return;
    const T* z = job.first_z + p.at(-1 - past) - p.n;
    for (int64_t j = 0; j < job.N; j++)
      if (z[j] != T(0))
        for (int k = 0; k < K; k++) x.current(k) += z[j] * w[(j * K + k) * job.N];
  }
  // (1) for spikes as bits, in ascending order; four rows are loaded together.
  LSNN_FUSE_INLINE void add_spikes(const Job<T>& job, const uint32_t* bits, const T* w, Values& x) {
    for (int64_t at = 0; at < words(job.N); at++)
      for (uint32_t word = bits[at]; word;) {
        T row[4][K] = {};
        int n = 0;
        for (int i = 0; i < 4; i++) {
          if (!word) continue;
          const int64_t j = 32 * at + lowest_bit(word);
          for (int k = 0; k < K; k++) row[i][k] = w[(j * K + k) * job.N];
          word &= word - 1;
          n++;
        }
        for (int i = 0; i < 4; i++)
          if (i < n)
            for (int k = 0; k < K; k++) x.current(k) += row[i][k];
      }
  }
  // Shared memory: dL/dc of the last D + 1 steps [D + 1,K N], as above. Step t reads those of
  // t + 1 to t + D.
  LSNN_FUSE_INLINE void sequence_back(const Job<T>& job, const Block& block) {
    const int64_t N = job.N, KN = K * N, rows = job.D + 1, end = length(job, block.index);
    const Point p = {block.index * N + block.thread, block.index, block.thread, job.B * N};
    T* const dc = (T*)block.shared;
    const bool is_neuron = p.n < N;
    if (is_neuron) begin_adjoint(job, p);
    int64_t first = end;  // of the chunk that is replayed
    for (int64_t t = end - 1; t >= (job.g_first_z ? -job.D : 0); t--) {
      if (is_neuron) {
        if (t >= 0 && t < first) {
          first = t / steps_of_chunk * steps_of_chunk;
          replay_chunk(job, p, first, t + 1);
        }
        T sum = T(0);
        for (int64_t d = 0; d < job.delays_n; d++) {
          const int64_t reached = t + 1 + job.delays[d];
          if (reached < 0 || reached >= end) continue;
          const T *w = job.packed + d * KN * N + p.n, *g = dc + reached % rows * KN;
#ifdef __CUDACC__
#pragma unroll 8
#endif
          for (int64_t i = 0; i < KN; i++) sum = fma_of(w[i * N], g[i], sum);
        }
        job.dz[p.i] += sum;
        adjoint_step(job, p, t, end, t < 0 ? nullptr : dc + t % rows * KN);
      }
      block.sync();
    }
    for (int64_t t = end; is_neuron && t < job.steps; t++) clear_gradient(job, p, t);
  }

  LSNN_FUSE_INLINE void sum_gradients(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    const int64_t g = quotient(i, job.N);
    if (g >= G || !(job.want >> g & 1)) return;
    T sum = T(0);
    for (int64_t b = 0; b < job.B; b++) sum += job.sums[(g * job.B + b) * job.N + (i - g * job.N)];
    job.g_coefficients[i] = sum;
  }
  LSNN_FUSE_INLINE void unpack_spikes(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    const int64_t all = job.B * job.N;
    if (i >= (job.t1 - job.t) * all) return;
    const int64_t t = quotient(i, all);
    job.spikes[i] = spike(job, point(job, i - t * all), job.t + t);
  }
  LSNN_FUSE_INLINE void weight_gradient(const Job<T>& job, const Block& block) {
    const int64_t i = thread_of(block);
    if (i >= job.N * K * job.N) return;
    const Synapse s = synapse(i, job.N);
    if (!has_delay(job, s)) return;
    const bool has_gradient =
        (job.autapses || s.j != s.n) && (!job.existing || weight(job, s) != T(0));
    job.gw[(s.k * job.N + s.j) * job.N + s.n] = has_gradient ? job.packed[i] : T(0);
  }
};

}  // namespace
}  // namespace lsnn::neuron

#ifdef __CUDACC__
#define LSNN_DEFINE_KERNEL(name)                                                       \
  extern "C" __global__ void __launch_bounds__(lsnn::neuron::most_neurons_of_block, 1) \
      lsnn_##name(const __grid_constant__ lsnn::neuron::Job<Step::Number> job) {       \
    extern __shared__ __align__(16) unsigned char lsnn_shared[];                       \
    lsnn::neuron::Threads<Step>::name(                                                 \
        job, {(int64_t)blockIdx.x, (int)threadIdx.x, (int)blockDim.x, lsnn_shared});   \
  }
#else
#define LSNN_DEFINE_KERNEL(name)                                                            \
  extern "C" __attribute__((visibility("default"))) void lsnn_##name(                       \
      const void* job, const lsnn::neuron::Block& block) {                                  \
    lsnn::neuron::Threads<Step>::name(*(const lsnn::neuron::Job<Step::Number>*)job, block); \
  }
#endif
