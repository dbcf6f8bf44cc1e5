// One planted bug of each class that the emulator must catch, and the build that catches it.
//
// plain: launch() throws an Error with this text, or the result is wrong in some order of the
// threads. address, thread: AddressSanitizer or ThreadSanitizer reports it.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "emulator_copy_bugs.h"

namespace emulator::test {
namespace bugs {

__global__ void missing_barrier(int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = int(i);
  out[i] = shared[n - 1 - i];
}

__global__ void overwrite(int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  for (int step = 0; step < 2; step++) {
    shared[i] = int(i) + step;
    __syncthreads();
    out[step * n + i] = shared[n - 1 - i];  // another thread may be at the next step already
  }
}

__global__ void block_barrier_for_cluster(int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned i = threadIdx.x, rank = cluster.block_rank();
  shared[i] = int(i + n * rank);
  __syncthreads();  // for cluster.sync()
  out[n * rank + i] = *cluster.map_shared_rank(&shared[i], 1 - rank);
  cluster.sync();
}

__global__ void block_barrier_for_grid(int* memory, int* out) {
  const unsigned i = threadIdx.x, b = blockIdx.x;
  memory[n * b + i] = int(n * b + i);
  __syncthreads();  // for grid.sync()
  out[n * b + i] = memory[n * (1 - b) + i];
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
}

__global__ void deadlock() {
  if (threadIdx.x < 32) __syncthreads();
  else named_barrier(1, n);
}

__global__ void lane_not_in_mask() { __ballot_sync(0xfffffffe, 1); }

__global__ void overlapping_masks() {
  if (threadIdx.x % 2) __syncwarp(0xaaaaaaab);
  else __syncwarp(0xffffffff);
}

__global__ void returned_lane() {
  if (threadIdx.x == 5) return;
  __ballot_sync(0xffffffff, 1);
}

__global__ void lane_outside_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffff, int(threadIdx.x), 4);
}

__global__ void past_shared_memory() {
  reinterpret_cast<int*>(shared_memory())[threadIdx.x + 1] = 0;
}

__global__ void two_blocks_one_word(int* out) { *out = 1; }

__global__ void missing_syncwarp(int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = int(i);
  __ballot_sync(0xffffffff, 1);  // no barrier for memory
  out[i] = shared[i ^ 1];
}

__global__ void missing_fence(int* data, unsigned* flag, int* out) {
  if (blockIdx.x == 0) {
    *data = 1;
    atomicExch(flag, 1);  // after __threadfence()
  } else {
    while (!atomicOr(flag, 0)) yield();
    __threadfence();
    *out = *data;
  }
}

__global__ void two_counts() { named_barrier(1, threadIdx.x < 32 ? 64 : 96); }

__global__ void small_count(int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = int(i);
  named_barrier(1, 32);  // n threads arrive
  out[i] = shared[n - 1 - i];
}

__global__ void no_such_barrier() { named_barrier(16, n); }
__global__ void part_of_a_warp() { named_barrier(1, 48); }

__global__ void rank_outside_cluster() {
  cooperative_groups::this_cluster().map_shared_rank(shared_memory(), 2);
}
__global__ void address_outside_shared() {
  cooperative_groups::this_cluster().map_shared_rank(shared_memory() + 4 * n, 1);
}

__global__ void ended_block(int* out) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned i = threadIdx.x, rank = cluster.block_rank();
  shared[i] = int(i + n * rank);
  int* other = cluster.map_shared_rank(&shared[i], 1 - rank);
  cluster.sync();
  out[n * rank + i] = *other;  // without a cluster.sync() after it the other block may have ended
}

__global__ void spin() {
  while (true) yield();
}
__global__ void grid_barrier() { cooperative_groups::this_grid().sync(); }
__global__ void wait_without_arrive() { cluster_wait(); }
__global__ void throws() { throw std::runtime_error("thrown"); }

// Whether out[i] is what the correct kernel writes.
inline bool reversed(const std::vector<int>& out) {
  for (unsigned i = 0; i < n; i++)
    if (out[i] != int(n - 1 - i)) return false;
  return true;
}
inline bool exchanged(const std::vector<int>& out) {
  for (unsigned i = 0; i < n; i++)
    if (out[i] != int(n + i) || out[n + i] != int(i)) return false;
  return true;
}

constexpr Launch one_block = {.block = n, .shared = 4 * n};
constexpr Launch cluster_of_2 = {.grid = 2, .block = n, .shared = 4 * n, .cluster = 2};
constexpr Launch grid_of_2 = {.grid = 2, .block = n, .cooperative = true};

}  // namespace bugs

struct Bug {
  const char* name;
  const char* builds;
  // a part of the Error; null: wrong results or a report of a sanitizer
  const char* error;
  bool (*good)();  // runs the kernel and returns whether its results are right
};

inline bool nothing_to_check(const Launch& shape, void (*kernel)()) {
  launch(shape, [kernel] { kernel(); });
  return true;
}

template <class K> bool check_out(const Launch& shape, bool (*right)(const std::vector<int>&),
                                  K kernel) {
  std::vector<int> out(2 * bugs::n);
  launch(shape, [&] { kernel(out.data()); });
  return right(out);
}

inline bool overwrite_is_right() {
  std::vector<int> out(2 * bugs::n);
  launch(bugs::one_block, [&] { bugs::overwrite(out.data()); });
  for (unsigned i = 0; i < 2 * bugs::n; i++)
    if (out[i] != int(bugs::n - 1 - i % bugs::n + i / bugs::n)) return false;
  return true;
}

inline bool grid_is_right() {
  std::vector<int> memory(2 * bugs::n, -1), out(2 * bugs::n);
  launch(bugs::grid_of_2, [&] { bugs::block_barrier_for_grid(memory.data(), out.data()); });
  return bugs::exchanged(out);
}

inline bool fence_is_right() {
  int data = 0, out = 0;
  unsigned flag = 0;
  launch({.grid = 2, .cooperative = true}, [&] { bugs::missing_fence(&data, &flag, &out); });
  return out == 1;
}

inline bool syncwarp_is_right() {
  std::vector<int> out(32);
  launch({.block = 32, .shared = 128}, [&] { bugs::missing_syncwarp(out.data()); });
  return out[0] == 1 && out[1] == 0;
}

inline bool copies_are_right(bugs::Copying bug) {
  std::vector<int> rows(3 * bugs::n), out(bugs::n);
  for (unsigned i = 0; i < rows.size(); i++) rows[i] = int(i);
  launch({.block = bugs::n, .shared = 8 * bugs::n},
         [&] { bugs::copies(bug, rows.data(), out.data()); });
  for (unsigned i = 0; i < bugs::n; i++)
    if (out[i] != int(3 * i + 3 * bugs::n)) return false;
  return true;
}
inline bool copies_with_barrier() {
  std::vector<int> from(bugs::n), out(bugs::n);
  for (unsigned i = 0; i < bugs::n; i++) from[i] = int(i);
  launch(bugs::one_block, [&] { bugs::copies_without_barrier(from.data(), out.data()); });
  return bugs::reversed(out);
}
inline bool copies_are_waited_for() {
  const int from = 1;
  launch(bugs::one_block, [&] { bugs::copy_never_waited_for(&from); });
  return true;
}

inline bool fragments_are_right(bool wrong_lane) {
  std::vector<float> a(16 * 16), b(16 * 8), out(16 * 8);  // exact in bfloat16
  for (unsigned i = 0; i < a.size(); i++) a[i] = float(int(i * 7 % 31) - 15);
  for (unsigned i = 0; i < b.size(); i++) b[i] = float(int(i * 11 % 29) - 14);
  launch({.block = 32}, [&] { bugs::fragments(wrong_lane, a.data(), b.data(), out.data()); });
  for (unsigned i = 0; i < out.size(); i++) {
    float sum = 1;
    for (unsigned k = 0; k < 16; k++) sum += a[i / 8 * 16 + k] * b[k * 8 + i % 8];
    if (out[i] != sum) return false;
  }
  return true;
}

inline bool small_numbers_are_added() {
  std::vector<float> out(32);
  launch({.block = 32}, [&] { bugs::small_numbers_added_to_1(out.data()); });
  for (float x : out)
    if (std::abs(x - 1 - 48 * 0x1p-23f) > 24 * 0x1p-23f) return false;
  return true;
}

inline bool counted_stores_are_right(bugs::Sending bug) {
  constexpr unsigned ranks = 4, all = 32 * ranks, n_steps = 7;
  std::vector<int> out(all), now(all);
  for (unsigned i = 0; i < all; i++) now[i] = int(i);
  for (unsigned step = 0; step < n_steps; step++) {
    int sum = 0;
    for (int number : now) sum += number;
    for (unsigned i = 0; i < all; i++) now[i] = sum % 1000 + int(i);
  }
  launch({.grid = ranks, .block = 32, .shared = 32 + 3 * 32 * all, .cluster = ranks},
         [&] { bugs::counted_stores(bug, n_steps, out.data()); });
  return out == now;
}

inline const Bug all_bugs[] = {
    {"missing_barrier", "plain thread", nullptr,
     [] { return check_out(bugs::one_block, bugs::reversed, bugs::missing_barrier); }},
    {"overwrite", "plain thread", nullptr, overwrite_is_right},
    {"block_barrier_for_cluster", "plain thread", nullptr,
     [] {
       return check_out(bugs::cluster_of_2, bugs::exchanged, bugs::block_barrier_for_cluster);
     }},
    {"block_barrier_for_grid", "plain thread", nullptr, grid_is_right},
    {"small_count", "plain thread", nullptr,
     [] { return check_out(bugs::one_block, bugs::reversed, bugs::small_count); }},
    {"ended_block", "plain address", nullptr,
     [] { return check_out(bugs::cluster_of_2, bugs::exchanged, bugs::ended_block); }},
    {"past_shared_memory", "address", nullptr,
     [] { return nothing_to_check(bugs::one_block, bugs::past_shared_memory); }},
    {"two_blocks_one_word", "thread", nullptr,
     [] {
       return check_out(
           {.grid = 2}, [](const std::vector<int>& out) { return out[0] == 1; },
           bugs::two_blocks_one_word);
     }},
    {"copy_without_wait", "plain", nullptr,
     [] { return copies_are_right(bugs::Copying::no_wait); }},
    {"wait_for_too_few_groups", "plain", nullptr,
     [] { return copies_are_right(bugs::Copying::one_group_too_many); }},
    {"stage_overwritten_early", "plain", nullptr,
     [] { return copies_are_right(bugs::Copying::stage_overwritten); }},
    {"copies_without_barrier", "plain thread", nullptr, copies_with_barrier},
    {"stores_without_wait", "plain", nullptr,
     [] { return counted_stores_are_right(bugs::Sending::no_wait); }},
    {"block_ends_before_its_stores", "plain", "a block ends while this store",
     [] { return counted_stores_are_right(bugs::Sending::no_last_wait); }},
    {"wait_for_a_later_store", "plain", nullptr,
     [] { return counted_stores_are_right(bugs::Sending::later_store); }},
    {"wait_for_another_phase", "plain", nullptr,
     [] { return counted_stores_are_right(bugs::Sending::wrong_phase); }},
    {"bytes_that_never_come", "plain", "no progress",
     [] { return counted_stores_are_right(bugs::Sending::too_many_bytes); }},
    {"slots_too_few", "plain thread", nullptr,
     [] { return counted_stores_are_right(bugs::Sending::too_few_slots); }},
    {"barrier_not_made", "plain", "has not made",
     [] { return counted_stores_are_right(bugs::Sending::not_made); }},
    {"store_off_its_boundary", "plain", "not on a boundary",
     [] { return nothing_to_check(bugs::one_block, bugs::store_off_its_boundary); }},
    {"fragment_in_the_wrong_lane", "plain", nullptr, [] { return fragments_are_right(true); }},
    {"small_numbers_added_to_1", "plain", nullptr, small_numbers_are_added},
    {"product_in_branches", "plain", "names lanes that wait in mma",
     [] { return nothing_to_check(bugs::one_block, bugs::product_in_branches); }},
    {"aligned_barrier_in_branches", "plain", "aligned barrier in divergent lanes",
     [] { return nothing_to_check(bugs::one_block, bugs::aligned_barrier_in_branches); }},
    {"one_try_to_wait", "plain", nullptr,
     [] { return check_out(bugs::one_block, bugs::reversed, bugs::one_try_to_wait); }},
    {"missing_syncwarp", "thread", nullptr, syncwarp_is_right},
    {"missing_fence", "thread", nullptr, fence_is_right},
    {"divergent_barrier", "plain", "divergent barrier",
     [] { return nothing_to_check(bugs::one_block, bugs::divergent_barrier); }},
    {"deadlock", "plain", "deadlock: 64 threads wait",
     [] { return nothing_to_check(bugs::one_block, bugs::deadlock); }},
    {"lane_not_in_mask", "plain", "leaves out the lane",
     [] { return nothing_to_check(bugs::one_block, bugs::lane_not_in_mask); }},
    {"overlapping_masks", "plain", "names lanes that wait",
     [] { return nothing_to_check(bugs::one_block, bugs::overlapping_masks); }},
    {"returned_lane", "plain", "return",
     [] { return nothing_to_check(bugs::one_block, bugs::returned_lane); }},
    {"lane_outside_mask", "plain", "which its mask",
     [] { return check_out(bugs::one_block, bugs::reversed, bugs::lane_outside_mask); }},
    {"two_counts", "plain", "meets the same of",
     [] { return nothing_to_check(bugs::one_block, bugs::two_counts); }},
    {"no_such_barrier", "plain", "named barrier 16",
     [] { return nothing_to_check(bugs::one_block, bugs::no_such_barrier); }},
    {"part_of_a_warp", "plain", "not whole warps",
     [] { return nothing_to_check(bugs::one_block, bugs::part_of_a_warp); }},
    {"rank_outside_cluster", "plain", "in a cluster of 2",
     [] { return nothing_to_check(bugs::cluster_of_2, bugs::rank_outside_cluster); }},
    {"address_outside_shared", "plain", "outside the block's shared memory",
     [] { return nothing_to_check(bugs::cluster_of_2, bugs::address_outside_shared); }},
    {"copy_of_two_bytes", "plain", "there are 4, 8 and 16",
     [] { return nothing_to_check(bugs::one_block, bugs::copy_of_two_bytes); }},
    {"copy_off_its_boundary", "plain", "not on a boundary",
     [] { return nothing_to_check(bugs::one_block, bugs::copy_off_its_boundary); }},
    {"copy_outside_shared", "plain", "outside the block's shared memory",
     [] { return nothing_to_check(bugs::one_block, bugs::copy_outside_shared); }},
    {"too_many_copies", "plain", "copies of a thread are under way",
     [] { return nothing_to_check(bugs::one_block, bugs::too_many_copies); }},
    {"copy_never_waited_for", "plain", "not waited for its copies", copies_are_waited_for},
    {"spin", "plain", "no progress", [] { return nothing_to_check(bugs::one_block, bugs::spin); }},
    {"grid_barrier", "plain", "not cooperative",
     [] { return nothing_to_check(bugs::one_block, bugs::grid_barrier); }},
    {"wait_without_arrive", "plain", "without cluster_arrive",
     [] { return nothing_to_check(bugs::one_block, bugs::wait_without_arrive); }},
    {"throws", "plain", "exception in the kernel: thrown",
     [] { return nothing_to_check(bugs::one_block, bugs::throws); }},
    {"invalid_launch", "plain", "more than 1024 threads",
     [] { return nothing_to_check({.block = 1025}, bugs::spin); }},
    {"too_many_registers", "plain", "more than 65536 registers",
     [] { return nothing_to_check({.block = 512, .registers = 129}, bugs::spin); }},
    {"launch_in_kernel", "plain", "inside a kernel",
     [] {
       return nothing_to_check(bugs::one_block,
                               [] { nothing_to_check(bugs::one_block, bugs::deadlock); });
     }},
};

}  // namespace emulator::test
