// Correct kernels for tests of the emulator.
#pragma once
#include "../../emulator/cuda.h"

namespace emulator::test {
namespace {

template <class T> T* shared() { return reinterpret_cast<T*>(shared_memory()); }

// Barriers do not wait for threads that have returned.
__global__ void early_exit(int* out, int n) {
  const int i = int(threadIdx.x);
  if (i >= n) return;
  shared<int>()[i] = i;
  __syncthreads();
  out[i] = shared<int>()[n - 1 - i];
}

__global__ void votes(int* out) {
  const int i = int(threadIdx.x);
  const int n = __syncthreads_count(i % 3 == 0), any = __syncthreads_or(i == 40),
            none = __syncthreads_or(0);
  const int all = __syncthreads_and(i < 64), not_all = __syncthreads_and(i < 63);
  out[i] = n + 100 * any + 1000 * none + 10000 * all + 100000 * not_all;
}

__global__ void warp_scan(int* out) {
  const unsigned i = threadIdx.x, lane = i % warpSize;
  int sum = int(i);
  for (unsigned d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  out[i] = sum;
}

// Disjoint groups of lanes that meet independently.
__global__ void disjoint_masks(unsigned* out) {
  const unsigned i = threadIdx.x;
  if (i % 2) out[i] = __ballot_sync(0xaaaaaaaa, i >= 16);
  else out[i] = __ballot_sync(0x55555555, i >= 16);
}

__global__ void shuffles(double* out) {
  const unsigned i = threadIdx.x;
  const double value = i + 0.25;
  out[i] = __shfl_sync(~0u, value, 3, 8);
  out[32 + i] = __shfl_xor_sync(~0u, value, 5, 8);
  out[64 + i] = __shfl_down_sync(~0u, value, 3, 16);
  out[96 + i] = __shfl_up_sync(~0u, value, 3, 16);
}

// Many operations of one mask in a row, while others of the warp lag behind.
__global__ void rounds(unsigned* out) {
  unsigned sum = 0;
  for (unsigned round = 0; round < 20; round++) {
    sum += __shfl_sync(~0u, threadIdx.x * round, int(round));
    if (threadIdx.x % 2) sum += unsigned(__popc(__ballot_sync(0xaaaaaaaa, threadIdx.x > round)));
    maybe_yield(Place::current());
  }
  out[threadIdx.x] = sum;
}

__global__ void histogram(unsigned* bins, float* sum, double* largest) {
  atomicAdd(&bins[(threadIdx.x * 7 + blockIdx.x) % 8], 1);
  atomicAdd(sum, 0.5);
  atomicMax(largest, threadIdx.x + 1000.0 * blockIdx.x);
}

__global__ void uninitialised(float* out) { out[threadIdx.x] = shared<float>()[threadIdx.x]; }

// Adjacent lanes exchange numbers through shared memory.
__global__ void exchange_in_warp(int* out) {
  const unsigned i = threadIdx.x;
  shared<int>()[i] = int(i);
  __syncwarp();
  const int other = shared<int>()[i ^ 1];
  __syncwarp();
  shared<int>()[i] = other;
  __syncwarp();
  out[i] = shared<int>()[i ^ 1];
}

// A block waits for a write of another one; the loop's atomic function lets the other block run.
__global__ void wait_for_flag(int* data, unsigned* flag, int* out) {
  if (blockIdx.x == 1) {
    while (!atomicOr(flag, 0)) {
    }
    __threadfence();
    *out = *data;
  } else {
    __nanosleep(20);
    *data = 42;
    __threadfence();
    atomicExch(flag, 1);
  }
}

// Value and tag in one word need no fence.
__global__ void tagged_words(uint64_t* words, int* out) {
  const unsigned b = blockIdx.x;
  for (uint64_t step = 1; step <= 5; step++) {
    atomicExch(&words[step * 2 + b], step << 32 | (step * 10 + b));
    uint64_t word = 0;
    while (word >> 32 != step) {
      yield();
      word = atomicOr(&words[step * 2 + (1 - b)], 0);
    }
    out[b] += int(unsigned(word));
  }
}

// Two halves of a block with separate barriers and different numbers of steps.
__global__ void two_groups(int* out) {
  const unsigned i = threadIdx.x, group = i / 64, place = i % 64;
  int* own = shared<int>() + 64 * group;
  for (unsigned step = 0; step < 3 + 2 * group; step++) {
    own[place] = int(i + step);
    named_barrier(1 + group, 64);
    out[i] = own[63 - place];
    named_barrier(1 + group, 64);
  }
}

// Named barriers count full warps, also the partial last warp of a block.
__global__ void part_of_a_block(int* out) {
  const unsigned i = threadIdx.x;
  shared<int>()[i] = int(i);
  named_barrier(3, 64);
  out[i] = shared<int>()[39 - i];
}

// Each block writes to the next one's shared memory.
__global__ void cluster_push(int* out) {
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned i = threadIdx.x, rank = cluster.block_rank(), n = cluster.num_blocks();
  int* next = cluster.map_shared_rank(shared<int>() + i, (rank + 1) % n);
  cluster.sync();
  *next = int(blockIdx.x * 100 + i);
  cluster.sync();
  out[blockIdx.x * blockDim.x + i] = shared<int>()[i];
}

// The same with double buffers and a barrier in two parts.
__global__ void split_barrier(int* out) {
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned i = threadIdx.x, rank = cluster.block_rank(), n = cluster.num_blocks();
  int sum = 0;
  cluster_arrive();
  for (unsigned step = 0; step < 6; step++) {
    cluster_wait();
    int* buffer = shared<int>() + step % 2 * blockDim.x + i;
    *cluster.map_shared_rank(buffer, (rank + 1) % n) = int(step * 10 + rank);
    cluster_arrive();
    cluster_wait();
    sum += *buffer;
    cluster_arrive();
  }
  cluster_wait();
  out[blockIdx.x * blockDim.x + i] = sum;
}

__global__ void grid_steps(int* memory, int* out) {
  const unsigned n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int step = 0; step < 4; step++) {
    memory[i] = int(i) * step;
    cooperative_groups::this_grid().sync();
    out[i] = memory[n - 1 - i];
    cooperative_groups::this_grid().sync();
  }
}

__global__ void indices(uint3* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] =
      make_uint3(blockIdx.z, threadIdx.z, threadIdx.y);
}

// Rows of numbers through a ring of stages: each thread reads its own copies, and a copy into a
// stage begins after its last reader.
constexpr unsigned stages = 4;
__global__ void staged(const float* rows, int n, float* out) {
  const unsigned i = threadIdx.x, width = blockDim.x;
  float* ring = shared<float>() + i;
  for (unsigned t = 0; t < stages - 1; t++) {
    if (int(t) < n) copy_async(ring + t * width, rows + t * width + i, 4);
    commit_copies();
  }
  for (int t = 0; t < n; t++) {
    wait_copies(stages - 2);
    out[unsigned(t) * width + i] = ring[unsigned(t) % stages * width];
    const unsigned next = unsigned(t) + stages - 1;
    if (int(next) < n) copy_async(ring + next % stages * width, rows + next * width + i, 4);
    commit_copies();
  }
}

// The cost of a step of a recurrent spiking network: a thread for each neuron, a mask of spikes,
// two barriers per step.
__global__ void recurrent(const float* weights, float* v, unsigned* spikes, unsigned n_steps) {
  unsigned* masks = shared<unsigned>();
  const unsigned n = blockDim.x, i = threadIdx.x;
  float state = v[i];
  for (unsigned step = 0; step < n_steps; step++) {
    const bool spike = state > 1;
    const unsigned mask = __ballot_sync(~0u, spike);
    if (i % 32 == 0) masks[i / 32] = mask;
    __syncthreads();
    float sum = 0;
    for (unsigned word = 0; word < n / 32; word++)
      for (unsigned left = masks[word]; left; left &= left - 1)
        sum += weights[(word * 32 + unsigned(__ffs(int(left))) - 1) * n + i];
    state = 0.9f * state + sum + 0.2f - (spike ? 1.0f : 0.0f);
    spikes[i] += spike;
    __syncthreads();
  }
  v[i] = state;
}

}  // namespace
}  // namespace emulator::test
