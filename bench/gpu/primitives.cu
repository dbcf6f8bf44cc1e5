// What barriers, handoffs and row gathers cost on this GPU: the numbers that decide between designs
// of a recurrent kernel.
//
// A program of its own, without anything of the library:
//   nvcc -std=c++20 -O3 -arch=sm_90 -o primitives primitives.cu && ./primitives [FILE]
// It writes CSV with the columns primitive, parameter, value, unit. A measure that this GPU lacks
// or that fails is named on stderr and the others go on; the exit status is 2 without a device and
// 1 when something failed.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <nv/target>
#include <string>
#include <type_traits>
#include <vector>

namespace {

constexpr int n_rounds = 2000, barrier_threads = 256, most_in_cluster = 16;
// after so many polls a handoff counts as lost: no run may hang
constexpr unsigned most_polls = 1u << 22;

struct Span {
  long long cycles, ns;
  unsigned lost;
};

FILE* csv = stdout;
bool failed = false;

bool good(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return true;
  std::fprintf(stderr, "primitives: FAILED %s: %s\n", what.c_str(), cudaGetErrorString(error));
  (void)cudaGetLastError();
  failed = true;
  return false;
}
void write(const char* primitive, const std::string& parameter, double value, const char* unit) {
  std::fprintf(csv, "%s,%s,%.6g,%s\n", primitive, parameter.c_str(), value, unit);
  std::fflush(csv);
}

__device__ long long nanoseconds() {
  long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// ---------------------------------------------------------------------------------------- barriers
__global__ void grid_barrier(int n, Span* span) {
  const auto grid = cooperative_groups::this_grid();
  grid.sync();
  const long long cycles = clock64(), ns = nanoseconds();
  for (int i = 0; i < n; i++) grid.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) *span = {clock64() - cycles, nanoseconds() - ns, 0};
}

// Both do nothing where there are no clusters; the host does not launch their kernels there.
__device__ void cluster_sync() {
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait."
                             "acquire.aligned;" :: : "memory");))
}
__device__ void cluster_sync_relaxed() {  // orders nothing: for data that carry tags of their own
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile(
           "barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" :: :);))
}

template <bool relaxed> __global__ void cluster_barrier(int n, Span* span) {
  cluster_sync();
  const long long cycles = clock64(), ns = nanoseconds();
  for (int i = 0; i < n; i++) relaxed ? cluster_sync_relaxed() : cluster_sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) *span = {clock64() - cycles, nanoseconds() - ns, 0};
  cluster_sync();
}

// ---------------------------------------------------------------------------------------- handoffs
// C blocks of one warp; in each step every block gives every block one 64-bit word, the step number
// with 32 bits of payload, and waits for the words of this step. The tag makes the word its own
// flag, so relaxed accesses suffice. Two buffers do: nobody sends step t + 2 before having step t +
// 1 of all, which each sends after it has read step t.
struct InCluster {
  static __device__ void give(uint64_t* mine, int to, int, uint64_t word) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
    NV_IF_TARGET(NV_PROVIDES_SM_90,
                 (uint32_t there; asm volatile(
                      "mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(to));
                  asm volatile("st.relaxed.cluster.shared::cluster.b64 [%0], %1;" ::"r"(there),
                               "l"(word) : "memory");))
  }
  static __device__ uint64_t look(const uint64_t* slot) {
    uint64_t word = 0;
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(slot));
    NV_IF_TARGET(NV_PROVIDES_SM_90,
                 (asm volatile("ld.relaxed.cluster.shared::cta.b64 %0, [%1];" : "=l"(word) : "r"(
                     address) : "memory");))
    return word;
  }
};
struct ThroughL2 {
  static __device__ void give(uint64_t* mine, int to, int from, uint64_t word) {
    // the row of the other block, the same place in it
    uint64_t* there = mine + (to - from) * most_in_cluster;
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(there), "l"(word) : "memory");
  }
  static __device__ uint64_t look(const uint64_t* slot) {
    uint64_t word;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(slot) : "memory");
    return word;
  }
};

// received: the two rows of this block, one word for each sender, stride words apart.
template <class Route> __device__ void exchange(int n, uint64_t* received, int stride, Span* span) {
  const int lane = threadIdx.x, me = blockIdx.x, C = gridDim.x;
  const long long cycles = clock64(), ns = nanoseconds();
  bool lost = false;
  for (int step = 1; step <= n && !lost; step++) {
    uint64_t* row = received + (step & 1) * stride;
    if (lane < C) {
      Route::give(row + me, lane, me, uint64_t(step) << 32 | unsigned(step * me));
      unsigned polls = 0;
      while (Route::look(row + lane) >> 32 != uint64_t(step) && !lost) lost = ++polls > most_polls;
    }
    lost = __any_sync(~0u, lost);
  }
  if (lane == 0 && (me == 0 || lost)) {
    if (me == 0) {
      span->cycles = clock64() - cycles;
      span->ns = nanoseconds() - ns;
    }
    if (lost) span->lost = 1;
  }
}

__global__ void exchange_in_cluster(int n, Span* span) {
  __shared__ uint64_t received[2 * most_in_cluster];
  received[threadIdx.x] = 0;
  cluster_sync();
  exchange<InCluster>(n, received, most_in_cluster, span);
  cluster_sync();  // nobody leaves while a word for it is on the way
}
// words [2][C][16] of zeros
__global__ void exchange_through_l2(int n, uint64_t* words, Span* span) {
  exchange<ThroughL2>(n, words + blockIdx.x * most_in_cluster, gridDim.x * most_in_cluster, span);
}

// ----------------------------------------------------------------------------------------- gathers
enum class From { l2, l1, shared };

// Every warp adds random rows of a table, 16 bytes per lane, R rows in flight: the sum over spikes
// of equation (1).
template <From from, int V, int R>
__global__ void gather(const float4* table, int n_rows, int row_vectors, int n, float4* out,
                       long long* cycles) {
  extern __shared__ float4 copy[];
  if (from == From::shared)
    for (int i = threadIdx.x; i < n_rows * row_vectors; i += blockDim.x) copy[i] = table[i];
  const int lane = threadIdx.x % 32;
  // the same in all lanes of a warp
  unsigned random = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * 2654435761u + 1;
  float4 sum[V] = {};
  __syncthreads();
  const long long start = clock64();
  for (int i = 0; i < n; i++) {
    float4 value[R][V];
#pragma unroll
    for (int r = 0; r < R; r++) {
      random = random * 1664525u + 1013904223u;
      const int first = int(__umulhi(random, n_rows)) * row_vectors;
#pragma unroll
      for (int v = 0; v < V; v++) {
        const int k = v * 32 + lane;
        value[r][v] = float4{};
        if (k < row_vectors)
          value[r][v] = from == From::shared ? copy[first + k]
                        : from == From::l2   ? __ldcg(table + first + k)
                                             : __ldg(table + first + k);
      }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int v = 0; v < V; v++) {
        sum[v].x += value[r][v].x;
        sum[v].y += value[r][v].y;
        sum[v].z += value[r][v].z;
        sum[v].w += value[r][v].w;
      }
  }
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  for (int v = 0; v < V; v++)  // or the compiler leaves out the loads
    if (sum[v].x + sum[v].y + sum[v].z + sum[v].w == -1) *out = sum[v];
}

// ---------------------------------------------------------------------------------- counted stores
// A step of the backward pass by matrices: each of the four blocks of a cluster stores its part of
// 220 neurons and eight items, `parts` units of 16 bytes for each eight neurons, into all blocks. A
// barrier in shared memory counts the bytes. A warp then works for so many dependent sums and waits
// for the units of the step before.
constexpr int exchange_ranks = 4, exchange_words = 7, exchange_items = 8, exchange_slots = 4,
              exchange_threads = 256;
constexpr int units_of_item = 4 * exchange_words;
__host__ __device__ constexpr int bytes_of_slot(int parts) {
  return parts * exchange_items * units_of_item * 16;
}
constexpr int shared_of_exchange(int parts) { return 128 + exchange_slots * bytes_of_slot(parts); }

__device__ uint32_t address_of(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
__device__ void make_counter(uint32_t counter) {
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
                             "fence.mbarrier_init.release.cluster;" ::"r"(counter) : "memory");))
}
__device__ void expect_bytes(uint32_t counter, uint32_t bytes) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter),
                    "r"(bytes) : "memory");))
}
__device__ bool have_arrived(uint32_t counter, uint32_t parity) {
  uint32_t arrived = 1;
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile(
           "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
           "selp.u32 %0, 1, 0, p;\n\t}" : "=r"(arrived) : "r"(counter),
           "r"(parity) : "memory");))
  return arrived;
}
__device__ void store_counted(uint32_t to, uint32_t counter, uint32_t rank, float x) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile("{\n\t.reg .b32 to, counter;\n\tmapa.shared::cluster.u32 to, %0, %2;\n\t"
                    "mapa.shared::cluster.u32 counter, %1, %2;\n\t"
                    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], "
                    "{%3,%3,%3,%3}, [counter];\n\t}" ::"r"(to),
                    "r"(counter), "r"(rank), "f"(x) : "memory");))
}

template <int parts> __global__ void __launch_bounds__(exchange_threads, 1)
    counted_exchange(int n, int work, Span* span, float* out) {
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
    if (step) wait(step - 1);
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
__device__ void add_product(float (&c)[4], uint32_t first) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_80,
      (asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%5,%5}, "
           "{%5,%5}, {%0,%1,%2,%3};" : "+f"(c[0]),
           "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(first), "r"(threadIdx.x));))
}
__global__ void __launch_bounds__(256, 1) products(int n, Span* span, float* out) {
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
constexpr int weights = 220 * 220;  // of the paper's network

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
template <class... P> struct Launch {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  Launch(int blocks, int threads, size_t shared, int cluster, bool cooperative) {
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.attrs = attributes;
    if (cluster) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = cluster;
      attributes[config.numAttrs].val.clusterDim.y = attributes[config.numAttrs].val.clusterDim.z =
          1;
      config.numAttrs++;
    }
    if (cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
  }
  Launch(const Launch&) = delete;
  cudaError_t operator()(void (*kernel)(P...), std::type_identity_t<P>... arguments) {
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
    return error == cudaSuccess ? cudaDeviceSynchronize() : error;
  }
};

// The kernel once to warm up, then the median of five runs, per round.
template <class F> void time_rounds(const char* primitive, const std::string& parameter, Span* span,
                                    F run) {
  std::vector<double> cycles, ns;
  for (int i = 0; i < 6; i++) {
    *span = {};
    if (!good(run(), primitive + (" " + parameter))) return;
    if (span->lost) {
      std::fprintf(stderr, "primitives: FAILED %s %s: a word never came\n", primitive,
                   parameter.c_str());
      failed = true;
      return;
    }
    if (i) {
      cycles.push_back(double(span->cycles) / n_rounds);
      ns.push_back(double(span->ns) / n_rounds);
    }
  }
  std::sort(cycles.begin(), cycles.end());
  std::sort(ns.begin(), ns.end());
  write(primitive, parameter, cycles[2], "cycles");
  write(primitive, parameter, ns[2], "ns");
}

template <class K> bool allow_cluster(K kernel, int C) {
  return C <= 8 ||
         good(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "cluster of 16");
}

void clusters(Span* span, int most_shared) {
  for (int C : {2, 4, 8, 16}) {
    const std::string name = "C=" + std::to_string(C);
    if (!allow_cluster(cluster_barrier<false>, C) || !allow_cluster(cluster_barrier<true>, C) ||
        !allow_cluster(exchange_in_cluster, C))
      continue;
    Launch<int, Span*> barrier(C, barrier_threads, 0, C, false), handoff(C, 32, 0, C, false);
    time_rounds("cluster.sync", name, span,
                [&] { return barrier(cluster_barrier<false>, n_rounds, span); });
    time_rounds("cluster relaxed arrive and wait", name, span,
                [&] { return barrier(cluster_barrier<true>, n_rounds, span); });
    time_rounds("tagged handoff in cluster", name, span,
                [&] { return handoff(exchange_in_cluster, n_rounds, span); });
    // beside what a block may have, a cluster needs its blocks in one GPC
    for (int shared : {0, most_shared - 2048}) {
      if (!good(cudaFuncSetAttribute(cluster_barrier<false>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                name))
        continue;
      const Launch<int, Span*> full(C, barrier_threads, size_t(shared), C, false);
      int most = 0;
      if (good(cudaOccupancyMaxActiveClusters(&most, cluster_barrier<false>, &full.config),
               "max active clusters " + name))
        write("max active clusters", name + " " + std::to_string(shared / 1024) + " KB", most,
              "clusters");
    }
  }
}

template <From from, int V, int R> void time_gather(int n_rows, int row_bytes, int threads,
                                                    int blocks, int most_shared) {
  const int bytes = n_rows * row_bytes, n = 4096 / R, shared = from == From::shared ? bytes : 0;
  const char* name = from == From::l2   ? "L2 gather"
                     : from == From::l1 ? "gather through L1"
                                        : "shared memory gather";
  const std::string parameter = std::to_string(row_bytes) + "-byte rows of " +
                                std::to_string(n_rows) + " " + std::to_string(threads) + " threads";
  if (shared > most_shared) return;
  float4 *table = nullptr, *out = nullptr;
  long long* cycles = nullptr;
  if (good(cudaMalloc(&table, bytes), parameter) && good(cudaMalloc(&out, 16), parameter) &&
      good(cudaMallocHost(&cycles, blocks * sizeof *cycles), parameter) &&
      good(cudaMemset(table, 1, bytes), parameter) &&
      good(cudaFuncSetAttribute(gather<from, V, R>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                shared),
           parameter)) {
    Launch<const float4*, int, int, int, float4*, long long*> launch(blocks, threads, shared, 0,
                                                                     false);
    std::vector<double> rate;
    for (int i = 0; i < 6; i++) {
      if (!good(launch(gather<from, V, R>, table, n_rows, row_bytes / 16, n, out, cycles),
                name + (" " + parameter)))
        break;
      double mean = 0;
      for (int b = 0; b < blocks; b++) mean += double(cycles[b]) / blocks;
      if (i) rate.push_back(double(n) * R * (threads / 32) * row_bytes / mean);
    }
    std::sort(rate.begin(), rate.end());
    if (rate.size() == 5) write(name, parameter, rate[2], "B/clk/SM");
  }
  cudaFree(table);
  cudaFree(out);
  cudaFreeHost(cycles);
}

template <From from> void gathers(int blocks, int most_shared) {
  for (int threads : {256, 512, 1024}) {
    time_gather<from, 2, 4>(220, 880, threads, blocks, most_shared);
    time_gather<from, 4, 2>(from == From::shared ? most_shared / 2048 : 512, 2048, threads, blocks,
                            most_shared);
    // 8 MB: no L1 holds a part of it
    if (from != From::shared) time_gather<from, 4, 2>(4096, 2048, threads, blocks, most_shared);
  }
}

template <int parts> void counted_exchanges(Span* span, float* out, int most_clusters) {
  const std::string name = std::to_string(parts) + " parts, work ";
  if (!good(
          cudaFuncSetAttribute(counted_exchange<parts>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_of_exchange(parts)),
          name))
    return;
  for (int clusters : {1, most_clusters})
    for (int work : {0, 100, 200, 300}) {
      Launch<int, int, Span*, float*> launch(exchange_ranks * clusters, exchange_threads,
                                             shared_of_exchange(parts), exchange_ranks, false);
      time_rounds("counted exchange in cluster",
                  name + std::to_string(work) + ", " + std::to_string(clusters) + " clusters", span,
                  [&] { return launch(counted_exchange<parts>, n_rounds, work, span, out); });
    }
}

// The clusters of a kernel that fit at once.
int clusters_at_once(int ranks, int most_shared) {
  int most = 0;
  const Launch<int, int, Span*, float*> full(ranks, exchange_threads, size_t(most_shared - 2048),
                                             ranks, false);
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
    Launch<int, const float4*, Span*, float*> launch(blocks, threads, 4 * weights, 0, false);
    time_rounds("copy of 220 x 220 weights", name + (", " + std::to_string(threads)) + " threads",
                span, [&] { return launch(copy_weights<how>, n_rounds, from, span, out); });
  }
}

int run() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "primitives: no CUDA device: %s\n",
                 error == cudaSuccess ? "none was found" : cudaGetErrorString(error));
    return 2;
  }
  int major = 0, multiprocessors = 0, most_shared = 0, cooperative = 0;
  const std::pair<int*, cudaDeviceAttr> attributes[] = {
      {&major, cudaDevAttrComputeCapabilityMajor},
      {&multiprocessors, cudaDevAttrMultiProcessorCount},
      {&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
      {&cooperative, cudaDevAttrCooperativeLaunch}};
  for (auto [value, attribute] : attributes)
    if (!good(cudaDeviceGetAttribute(value, attribute, 0), "attributes of the device")) return 1;
  Span* span = nullptr;
  uint64_t* words = nullptr;
  const size_t n_bytes = 2 * most_in_cluster * most_in_cluster * sizeof *words;
  if (!good(cudaMallocHost(&span, sizeof *span), "memory") ||
      !good(cudaMalloc(&words, n_bytes), "memory"))
    return 1;

  std::fprintf(csv, "primitive,parameter,value,unit\n");
  if (cooperative)
    for (int blocks : {2, 16, multiprocessors}) {
      Launch<int, Span*> launch(blocks, barrier_threads, 0, 0, true);
      time_rounds("grid.sync", std::to_string(blocks) + " blocks", span,
                  [&] { return launch(grid_barrier, n_rounds, span); });
    }
  if (major >= 9) clusters(span, most_shared);
  else std::fprintf(stderr, "primitives: no clusters: they need compute capability 9.0\n");
  for (int C : {2, 4, 8, 16}) {
    if (!cooperative) break;  // so that no block waits for one that has not started
    Launch<int, uint64_t*, Span*> launch(C, 32, 0, 0, true);
    time_rounds("tagged handoff through L2", "C=" + std::to_string(C), span, [&] {
      const cudaError_t cleared = cudaMemset(words, 0, n_bytes);
      return cleared == cudaSuccess ? launch(exchange_through_l2, n_rounds, words, span) : cleared;
    });
  }
  gathers<From::l2>(multiprocessors, most_shared);
  gathers<From::l1>(multiprocessors, most_shared);
  gathers<From::shared>(multiprocessors, most_shared);
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
      Launch<int, Span*, float*> launch(blocks, 256, 0, 0, false);
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
  cudaFree(words);
  cudaFreeHost(span);
  return failed ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) csv = std::fopen(argv[1], "w");
  if (!csv) {
    std::fprintf(stderr, "primitives: cannot write %s\n", argv[1]);
    return 1;
  }
  const int status = run();
  if (csv != stdout) std::fclose(csv);
  return status;
}
