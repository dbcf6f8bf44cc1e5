// The planted bugs of emulator_bugs.h in kernels that copy, that store into other blocks, and that
// multiply matrices.
#pragma once
#include "../../emulator/cuda.h"

namespace emulator::test::bugs {

constexpr unsigned n = 64;  // threads of a block: two warps

// Three rows of n numbers through two stages; expected: out[i] is the sum of the column.
enum class Copying { no_wait, one_group_too_many, stage_overwritten };
__global__ void copies(Copying bug, const int* rows, int* out) {
  int* ring = reinterpret_cast<int*>(shared_memory()) + threadIdx.x;
  auto copy = [&](unsigned t) {
    if (t < 3) copy_async(ring + t % 2 * n, rows + t * n + threadIdx.x, 4);
    commit_copies();
  };
  copy(0);
  int sum = 0;
  for (unsigned t = 0; t < 3; t++) {
    copy(bug == Copying::stage_overwritten ? t + 2 : t + 1);
    if (bug != Copying::no_wait) wait_copies(bug == Copying::one_group_too_many ? 2 : 1);
    sum += ring[t % 2 * n];
  }
  wait_copies(0);
  out[threadIdx.x] = sum;
}

__global__ void copies_without_barrier(const int* from, int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  copy_async(shared + i, from + i, 4);
  commit_copies();
  wait_copies(0);
  out[i] = shared[n - 1 - i];  // after __syncthreads()
}

// Steps of a cluster whose blocks, of 32 threads, need all numbers of the step before. Each thread
// sends its number to all blocks, as the first of four, and then a second time; two mbarriers,
// which alternate with two others, count the bytes of each. There is no other barrier between
// steps. With a slot for each of three steps no number is overwritten while it is read.
// later_store: each thread waits for a store that is sent after its number.
enum class Sending {
  right,
  no_wait,
  no_last_wait,
  wrong_phase,
  later_store,
  too_many_bytes,
  too_few_slots,
  not_made
};
__global__ void counted_stores(Sending bug, unsigned n_steps, int* out) {
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned i = threadIdx.x, ranks = cluster.num_blocks(), all = 32 * ranks;
  const unsigned slots = bug == Sending::too_few_slots ? 1 : 3;
  uint64_t* arrived = reinterpret_cast<uint64_t*>(shared_memory());
  int* rows = reinterpret_cast<int*>(shared_memory()) + 8;
  if (i < 4 && bug != Sending::not_made) init_mbarrier(arrived + i, 1);
  cluster.sync();
  int number = int(32 * cluster.block_rank() + i);
  for (unsigned step = 0; step < n_steps; step++) {
    uint64_t* barrier = arrived + step % 2;
    if (i == 0) arrive_mbarrier(barrier, 16 * all * (bug == Sending::too_many_bytes ? 2 : 1));
    if (i == 0) arrive_mbarrier(barrier + 2, 16 * all);
    int* row = rows + step % slots * 8 * all;
    const int quad[4] = {number, 0, 0, 0};
    int* own = row + 4 * (32 * cluster.block_rank() + i);
    for (int* to : {own, own + 4 * all})
      for (unsigned r = 0; r < ranks; r++)
        store_async(cluster.map_shared_rank(to, r), quad,
                    cluster.map_shared_rank(to == own ? barrier : barrier + 2, r));
    const unsigned phase = step / 2 % 2, waited = bug == Sending::wrong_phase ? 1 - phase : phase;
    const bool waits =
        bug != Sending::no_wait && (bug != Sending::no_last_wait || step + 1 < n_steps);
    while (waits && bug != Sending::later_store && !passed_mbarrier(barrier, waited)) yield();
    while (waits && !passed_mbarrier(barrier + 2, waited)) yield();
    if (bug == Sending::no_last_wait && !waits) break;
    number = 0;
    for (unsigned j = 0; j < all; j++) number += row[4 * j];
    number = number % 1000 + int(32 * cluster.block_rank() + i);
  }
  cluster.sync();
  out[32 * blockIdx.x + i] = number;
}

// A product of matrices, a (16,16) with b (16,8), from fragments as defined by PTX; wrong_lane: two
// lanes have swapped parts of b.
__global__ void fragments(bool wrong_lane, const float* a, const float* b, float* out) {
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const unsigned column = wrong_lane ? g ^ 1 : g;
  auto pair = [](float first, float second) {
    return __float_as_uint(first) >> 16 | (__float_as_uint(second) & 0xffff0000);
  };
  uint32_t left[4], right[2];
  for (unsigned i = 0; i < 4; i++) {
    const float* from = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    left[i] = pair(from[0], from[1]);
  }
  for (unsigned i = 0; i < 2; i++) {
    const float* from = b + (2 * t + i * 8) * 8 + column;
    right[i] = pair(from[0], from[8]);
  }
  float sum[4] = {1, 1, 1, 1};
  mma_m16n8k16_bf16(sum, left, right, Place::current());
  for (unsigned i = 0; i < 4; i++) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

// Adds three quarters of the last bit of a float 64 times to 1, in sums of a product with ones. A
// sum that rounds is a third too large, one that truncates loses all; the right kernel adds them to
// 0 and the sum to 1.
__global__ void small_numbers_added_to_1(float* out) {
  const auto half_of = [](float x) { return __float_as_uint(x) >> 16; };
  const uint32_t small = half_of(0x1.8p-24f), one = half_of(1);
  // one product of 16: of lanes with t = 0
  const uint32_t left[4] = {threadIdx.x % 4 ? 0 : small, threadIdx.x % 4 ? 0 : small, 0, 0};
  const uint32_t right[2] = {one, 0};
  float sum[4] = {1, 1, 1, 1};
  for (unsigned i = 0; i < 64; i++) mma_m16n8k16_bf16(sum, left, right, Place::current());
  out[threadIdx.x] = sum[0];
}
__global__ void product_in_branches() {
  float sum[4] = {};
  const uint32_t left[4] = {}, right[2] = {};
  if (threadIdx.x % 2) mma_m16n8k16_bf16(sum, left, right, Place::current());
  else mma_m16n8k16_bf16(sum, left, right, Place::current());
}
__global__ void aligned_barrier_in_branches() {
  if (threadIdx.x % 2) named_barrier_aligned(1, n);
  else named_barrier_aligned(1, n);
}

// try_wait may return false after the phase has ended: it belongs in a loop.
__global__ void one_try_to_wait(int* out) {
  uint64_t* barrier = reinterpret_cast<uint64_t*>(shared_memory());
  if (threadIdx.x == 0) init_mbarrier(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0) arrive_mbarrier(barrier, 0);
  __syncthreads();
  out[threadIdx.x] = passed_mbarrier(barrier, 0) ? int(n - 1 - threadIdx.x) : -1;
}
__global__ void copy_of_two_bytes() { copy_async(shared_memory(), shared_memory(), 2); }
__global__ void copy_off_its_boundary() { copy_async(shared_memory() + 4, shared_memory(), 8); }
__global__ void copy_outside_shared() { copy_async(shared_memory() + 4 * n, shared_memory(), 4); }
__global__ void too_many_copies() {
  for (unsigned i = 0; i <= most_copies; i++) copy_async(shared_memory(), shared_memory() + 4, 4);
}
__global__ void copy_never_waited_for(const int* from) {
  copy_async(shared_memory() + 4 * threadIdx.x, from, 4);
  commit_copies();
}

__global__ void store_off_its_boundary() {
  uint64_t* barrier = reinterpret_cast<uint64_t*>(shared_memory());
  const int quad[4] = {};
  init_mbarrier(barrier, 1);
  store_async(shared_memory() + 8, quad, barrier);
}

}  // namespace emulator::test::bugs
