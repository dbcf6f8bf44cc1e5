// What a step of the backward pass by matrices consists of, see csrc/cuda/lsnn_matrix_cluster.cuh.
#pragma once
#include <cstdint>

#include "primitives_timing.cuh"

namespace primitives {

// ---------------------------------------------------------------------------------- counted stores
// A step of the backward pass by matrices: each of the four blocks of a cluster stores its part of
// 220 neurons and eight items, `parts` units of 16 bytes for each eight neurons, into all blocks. A
// barrier in shared memory counts the bytes. A warp waits for the units of `lag` steps before,
// then computes `work` dependent sums. lag 0 is the order of the general kernel in a cluster, 1
// that of the kernel by matrices; see csrc/cuda/cluster_rows.cuh.

// polls after which an exchange counts as lost: no run may hang
inline constexpr unsigned most_polls = 1u << 22;
inline constexpr int exchange_ranks = 4, exchange_words = 7, exchange_items = 8, exchange_slots = 4,
                     exchange_threads = 256;
inline constexpr int units_of_item = 4 * exchange_words;
__host__ __device__ constexpr int bytes_of_slot(int parts) {
  return parts * exchange_items * units_of_item * 16;
}
constexpr int shared_of_exchange(int parts) { return 128 + exchange_slots * bytes_of_slot(parts); }

inline __device__ uint32_t address_of(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
inline __device__ void make_counter(uint32_t counter) {
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
                             "fence.mbarrier_init.release.cluster;" ::"r"(counter) : "memory");))
}
inline __device__ void expect_bytes(uint32_t counter, uint32_t bytes) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter),
                    "r"(bytes) : "memory");))
}
inline __device__ bool have_arrived(uint32_t counter, uint32_t parity) {
  uint32_t arrived = 1;
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile(
           "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
           "selp.u32 %0, 1, 0, p;\n\t}" : "=r"(arrived) : "r"(counter),
           "r"(parity) : "memory");))
  return arrived;
}
inline __device__ void store_counted(uint32_t to, uint32_t counter, uint32_t rank, float x) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile("{\n\t.reg .b32 to, counter;\n\tmapa.shared::cluster.u32 to, %0, %2;\n\t"
                    "mapa.shared::cluster.u32 counter, %1, %2;\n\t"
                    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], "
                    "{%3,%3,%3,%3}, [counter];\n\t}" ::"r"(to),
                    "r"(counter), "r"(rank), "f"(x) : "memory");))
}

template <int parts> __global__ void __launch_bounds__(exchange_threads, 1)
    counted_exchange(int n, int lag, int work, Span* span, float* out) {
  extern __shared__ __align__(128) unsigned char memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int word = 2 * (blockIdx.x % exchange_ranks) + warp / 4;  // of neurons
  const uint32_t counters = address_of(memory), slots = address_of(memory + 128);
  if (threadIdx.x == 0)
    for (int i = 0; i < exchange_slots; i++) make_counter(counters + 8 * i);
  cluster_sync();
  if (word >= exchange_words) return;
  const long long cycles = clock64(), ns = nanoseconds();
  const int item = warp % 4 + lane / 4 % 2 * 4, unit = 4 * word + lane % 4;
  float x = 0;
  bool lost = false;
  auto wait = [&](int step) {
    unsigned polls = 0;
    while (!lost && !have_arrived(counters + step % exchange_slots * 8, step / exchange_slots % 2))
      lost = ++polls > most_polls;
  };
  for (int step = 0; step < n && !lost; step++) {
    const uint32_t counter = counters + step % exchange_slots * 8,
                   slot = slots + step % exchange_slots * bytes_of_slot(parts);
    if (threadIdx.x == 0) expect_bytes(counter, bytes_of_slot(parts));
#pragma unroll
    for (int part = 0; part < parts; part++)
      store_counted(slot + ((part * exchange_items + item) * units_of_item + unit) * 16, counter,
                    lane / 8, x);
    if (step >= lag) wait(step - lag);
    for (int i = 0; i < work; i++) x = fmaf(x, 0.5f, 1.0f);
  }
  if (n) wait(n - 1);
  if (threadIdx.x == 0 && blockIdx.x == 0) {
    span->cycles = clock64() - cycles;
    span->ns = nanoseconds() - ns;
  }
  if (lost) span->lost = 1;
  if (x == -1) *out = x;
}

// ------------------------------------------------------------------------------------ tensor cores
// The products of a warp in such a step: 42 mma of bfloat16 in six chains, eight warps, a barrier.
inline __device__ void add_product(float (&c)[4], uint32_t first) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_80,
      (asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%5,%5}, "
           "{%5,%5}, {%0,%1,%2,%3};" : "+f"(c[0]),
           "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(first), "r"(threadIdx.x));))
}
static __global__ void __launch_bounds__(256, 1) products(int n, Span* span, float* out) {
  float sum[6][4] = {};
  __syncthreads();
  const long long cycles = clock64(), ns = nanoseconds();
  for (int round = 0; round < n; round++) {
#pragma unroll
    for (int i = 0; i < 42; i++) add_product(sum[i % 6], i);
    __syncthreads();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *span = {clock64() - cycles, nanoseconds() - ns, 0};
  float all = 0;
  for (auto& chain : sum)
    for (float c : chain) all += c;
  if (all == -1) *out = all;
}

// -------------------------------------------------------------------------- weights into a block
enum class Copy { one, eight, async };
inline constexpr int weights = 220 * 220;  // of the paper's network

template <Copy how> __global__ void copy_weights(int n, const float4* from, Span* span,
                                                 float* out) {
  extern __shared__ float4 copy[];
  constexpr int vectors = weights / 4;
  const long long cycles = clock64(), ns = nanoseconds();
  for (int round = 0; round < n; round++) {
    if constexpr (how == Copy::one) {
#pragma unroll 1
      for (int i = threadIdx.x; i < vectors; i += blockDim.x) copy[i] = __ldcg(from + i);
    } else if constexpr (how == Copy::eight) {
      for (int i = threadIdx.x; i < vectors; i += 8 * blockDim.x) {
        float4 x[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
          if (i + k * blockDim.x < vectors) x[k] = __ldcg(from + i + k * blockDim.x);
#pragma unroll
        for (int k = 0; k < 8; k++)
          if (i + k * blockDim.x < vectors) copy[i + k * blockDim.x] = x[k];
      }
    } else {
      for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
        const uint32_t to = address_of(copy + i);
        NV_IF_TARGET(NV_PROVIDES_SM_80,
                     (asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                                   "l"(from + i) : "memory");))
      }
      NV_IF_TARGET(
          NV_PROVIDES_SM_80,
          (asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" :: : "memory");))
    }
    __syncthreads();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *span = {clock64() - cycles, nanoseconds() - ns, 0};
  if (copy[threadIdx.x].x == -1) *out = 1;
}

// -------------------------------------------------------------------------------------------- host
template <int parts> void counted_exchanges(Span* span, float* out, int most_clusters) {
  const std::string name = std::to_string(parts) + " parts, lag ";
  if (!good(
          cudaFuncSetAttribute(counted_exchange<parts>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_of_exchange(parts)),
          name))
    return;
  for (int clusters : {1, most_clusters})
    for (auto [lag, work] : {std::pair(0, 0), {1, 0}, {1, 100}, {1, 200}, {1, 300}}) {
      Launch<int, int, int, Span*, float*> launch(exchange_ranks * clusters, exchange_threads,
                                                  shared_of_exchange(parts), exchange_ranks);
      time_rounds("counted exchange in cluster",
                  name + std::to_string(lag) + ", work " + std::to_string(work) + ", " +
                      std::to_string(clusters) + " clusters",
                  span,
                  [&] { return launch(counted_exchange<parts>, n_rounds, lag, work, span, out); });
    }
}

// The clusters of a kernel that fit at once.
inline int clusters_at_once(int ranks, int most_shared) {
  int most = 0;
  const Launch<int, int, int, Span*, float*> full(ranks, exchange_threads,
                                                  size_t(most_shared - 2048), ranks);
  good(cudaFuncSetAttribute(counted_exchange<3>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            most_shared - 2048),
       "shared memory");
  good(cudaOccupancyMaxActiveClusters(&most, counted_exchange<3>, &full.config),
       "max active clusters");
  return std::max(most, 1);
}

template <Copy how> void time_copies(const char* name, int blocks, const float4* from, Span* span,
                                     float* out) {
  if (!good(cudaFuncSetAttribute(copy_weights<how>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 4 * weights),
            name))
    return;
  for (int threads : {64, 128, 448}) {
    Launch<int, const float4*, Span*, float*> launch(blocks, threads, 4 * weights, 0);
    time_rounds("copy of 220 x 220 weights", name + (", " + std::to_string(threads)) + " threads",
                span, [&] { return launch(copy_weights<how>, n_rounds, from, span, out); });
  }
}

inline void matrix_steps(Span* span, int major, int multiprocessors, int most_shared) {
  float4* from = nullptr;
  float* out = nullptr;
  if (good(cudaMalloc(&from, 4 * weights), "memory") && good(cudaMalloc(&out, 4), "memory") &&
      good(cudaMemset(from, 0, 4 * weights), "memory")) {
    if (major >= 9) {
      const int most = clusters_at_once(exchange_ranks, most_shared);
      counted_exchanges<1>(span, out, most);
      counted_exchanges<2>(span, out, most);
      counted_exchanges<3>(span, out, most);
    }
    for (int blocks : {1, multiprocessors}) {
      if (major < 8) break;
      Launch<int, Span*, float*> launch(blocks, 256, 0, 0);
      time_rounds("42 mma of eight warps and a barrier", std::to_string(blocks) + " blocks", span,
                  [&] { return launch(products, n_rounds, span, out); });
    }
    if (4 * weights <= most_shared) {
      time_copies<Copy::one>("a load at a time", multiprocessors, from, span, out);
      time_copies<Copy::eight>("eight loads at a time", multiprocessors, from, span, out);
      if (major >= 8) time_copies<Copy::async>("cp.async", multiprocessors, from, span, out);
    }
  }
  cudaFree(from);
  cudaFree(out);
}

}  // namespace primitives
