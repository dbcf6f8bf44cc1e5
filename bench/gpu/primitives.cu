// What barriers, exchanges, products and row gathers cost on this GPU: the numbers that decide
// between designs of a recurrent kernel.
//
// A program of its own, without anything of the library:
//   nvcc -std=c++20 -O3 -arch=sm_90 -o primitives primitives.cu && ./primitives [FILE]
// It writes CSV with the columns primitive, parameter, value, unit. A measure that this GPU lacks
// or that fails is named on stderr and the others go on; the exit status is 2 without a device and
// 1 when something failed.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "primitives_matrix.cuh"
#include "primitives_timing.cuh"

namespace primitives {

constexpr int barrier_threads = 256;

// ---------------------------------------------------------------------------------------- barriers
__global__ void cluster_barrier(int n, Span* span) {
  cluster_sync();
  const long long cycles = clock64(), ns = nanoseconds();
  for (int i = 0; i < n; i++) cluster_sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) *span = {clock64() - cycles, nanoseconds() - ns, 0};
  cluster_sync();
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

// -------------------------------------------------------------------------------------------- host
void clusters(Span* span, int most_shared) {
  for (int C : {2, 4, 8}) {
    const std::string name = "C=" + std::to_string(C);
    Launch<int, Span*> barrier(C, barrier_threads, 0, C);
    time_rounds("cluster.sync", name, span,
                [&] { return barrier(cluster_barrier, n_rounds, span); });
    // besides the limits of a block, a cluster needs its blocks in one GPC
    for (int shared : {0, most_shared - 2048}) {
      if (!good(cudaFuncSetAttribute(cluster_barrier, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     shared),
                name))
        continue;
      const Launch<int, Span*> full(C, barrier_threads, size_t(shared), C);
      int most = 0;
      if (good(cudaOccupancyMaxActiveClusters(&most, cluster_barrier, &full.config),
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
    Launch<const float4*, int, int, int, float4*, long long*> launch(blocks, threads, shared, 0);
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

int run() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "primitives: no CUDA device: %s\n",
                 error == cudaSuccess ? "none was found" : cudaGetErrorString(error));
    return 2;
  }
  int major = 0, multiprocessors = 0, most_shared = 0;
  const std::pair<int*, cudaDeviceAttr> attributes[] = {
      {&major, cudaDevAttrComputeCapabilityMajor},
      {&multiprocessors, cudaDevAttrMultiProcessorCount},
      {&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin}};
  for (auto [value, attribute] : attributes)
    if (!good(cudaDeviceGetAttribute(value, attribute, 0), "attributes of the device")) return 1;
  Span* span = nullptr;
  if (!good(cudaMallocHost(&span, sizeof *span), "memory")) return 1;

  std::fprintf(csv, "primitive,parameter,value,unit\n");
  if (major >= 9) clusters(span, most_shared);
  else std::fprintf(stderr, "primitives: no clusters: they need compute capability 9.0\n");
  gathers<From::l2>(multiprocessors, most_shared);
  gathers<From::l1>(multiprocessors, most_shared);
  gathers<From::shared>(multiprocessors, most_shared);
  matrix_steps(span, major, multiprocessors, most_shared);
  cudaFreeHost(span);
  return failed ? 1 : 0;
}

}  // namespace primitives

int main(int argc, char** argv) {
  using primitives::csv;
  if (argc > 1) csv = std::fopen(argv[1], "w");
  if (!csv) {
    std::fprintf(stderr, "primitives: cannot write %s\n", argv[1]);
    return 1;
  }
  const int status = primitives::run();
  if (csv != stdout) std::fclose(csv);
  return status;
}
