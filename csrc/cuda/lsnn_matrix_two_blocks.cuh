// The backward pass of the paper's network by matrices in a cluster of two blocks, each of which has
// the weights of its own half of the neurons. So registers hold two parts of them, and four items
// go through the steps together: two parts of their dL/dc are the eight columns of a mma.
//
// With two parts a factor is rounded to 16 bits. With three nothing is rounded but sums: a float is
// the sum of three bfloat16 numbers, and what is left out, products of which both are of the lower
// parts, is smaller than the last bit of a product in float32. Then the third part of W lies in
// shared memory, and the third part of dL/dc is a matrix of its own.
//
// A lane owns a neuron in two items. Two warps have the same 32 neurons, each in two of the four
// items, and share out their product, each 16 rows of it for all items: they change sums in shared
// memory, behind a barrier of these two. What others need is dL/dc alone, for which one waits once
// in a step, see cluster_rows.cuh.
#pragma once
#include "cluster_rows.cuh"
#include "lsnn_items.cuh"

namespace lsnn::cuda {

// words_of_layer: of 32 neurons.
template <int words_of_layer, int parts> struct LsnnTwoBlockProducts : LsnnSlots {
  static_assert(parts == 2 || parts == 3);
  static constexpr int groups = groups_of_two_blocks, all_items = items_of_two_blocks,
                       items = all_items / groups, next = groups;
  static constexpr int across = 2 * words_of_layer;  // tiles of all columns
  static constexpr int warps = (words_of_layer + 1) / 2 * groups;
  const Group group;
  const int word;  // of the warp's neurons
  ClusterRows rows;
  const int units, slot;
  float* const dc;  // [slots,slot]
  float* const sums;  // [2,words of the block,all_items,rows_of_two_blocks_sum] from the word's on
  uint32_t* const lowest;  // [across,words_of_fragment] of the warp, from the lane's place on
  int turn = 0;  // which of the two sums
  uint32_t upper[2][across][4];  // by parts

  // from: [N,NP], all weights. What is beyond is 0.
  __device__ __forceinline__ LsnnTwoBlockProducts(const Layer& l, const Shape& shape,
                                                  const LsnnTwoBlocksShared& shared,
                                                  const Group& own, int own_word,
                                                  const ClusterRows& cluster_rows,
                                                  const float* from)
      : LsnnSlots{shape.slots},
        group(own),
        word(own_word),
        rows(cluster_rows),
        units(shared.units),
        slot(shared.slot),
        dc(shared.dc),
        sums(shared.sums + own.warp() * all_items * rows_of_two_blocks_sum),
        lowest(shared.lowest + (int)threadIdx.x / 32 * across * words_of_fragment + own.lane() * 4) {
    const int N = (int)l.N, NP = (int)padded(l.N), row = first_row() + group.lane() / 4;
#pragma unroll
    for (int of = 0; of < across; of++) {
      const int column = side_of_tile * of + group.lane() % 4 * 4;
      Quad<float> x[2] = {};
#pragma unroll
      for (int half = 0; half < 2; half++)
        if (row + 8 * half < N && column < NP)
          x[half] = quad_at(from + (int64_t)(row + 8 * half) * NP + column);
#pragma unroll
      for (int part = 0; part < parts; part++) {
        const Quad<uint32_t> fragment = take_fragment(x[0], x[1]);
#pragma unroll
        for (int i = 0; i < 4 && part < 2; i++) upper[part][of][i] = fragment[i];
        // Its own lane alone reads it.
        if (part == 2) store_whole(lowest + of * words_of_fragment, fragment);
      }
    }
  }
  // Of the layer, the first of those that the warp multiplies.
  __device__ __forceinline__ int first_row() const { return 32 * word + side_of_tile * group.id; }

  // x: dL/dc of the lane's neuron in its items. Sixteen lanes have the units of an item, each of
  // four neighbouring neurons: eight of them send these to a block, the others to the other one.
  __device__ __forceinline__ void publish(const float (&x)[items]) const {
    rows.begin_step();
    const unsigned lane = group.lane();
    const bool is_second = lane & 16;
    float rest[items] = {x[0], x[1]}, unit[words_of_unit], lower[2];
#pragma unroll
    for (int part = 0; part < parts; part++) {
      float both[words_of_unit];  // items
      gather_halves(take_upper(rest[0], rest[1]), lane % 8 * 4, both);
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const float own = is_second ? both[2 + pair] : both[pair];
        if (part < 2) unit[2 * part + pair] = own;
        else lower[pair] = own;
      }
    }
    const int quad = 8 * word + (int)(lane % 8), item = group.id + (is_second ? groups : 0);
    if (4 * quad >= rows.NP) return;
    const unsigned rank = lane / 8 % 2;
    rows.send_to(rank, dc + written * slot + (item * units + quad) * words_of_unit, unit);
    if constexpr (parts == 3)
      rows.send_to(rank, dc + written * slot + third_part() + (item * units + quad) * 2, lower);
  }
  // Where it begins in a slot.
  __device__ __forceinline__ int third_part() const { return all_items * units * words_of_unit; }

  struct Sums { float of[items]; };
  __device__ __forceinline__ bool multiplies_first() const {
    return is_second_of_scheduler<warps>();  // they have different neurons
  }
  // Of the step d + 1 later.
  __device__ __forceinline__ Sums multiply() {
    const int lane = group.lane(), item = lane / 8, part = lane / 4 % 2;  // of the lane's column
    const float* from = dc + before(before(written)) * slot;
    const float* both = from + (item * units + lane % 4) * words_of_unit + 2 * part;
    [[maybe_unused]] const float* third = from + third_part() + (item * units + lane % 4) * 2;
    constexpr int chains = 4;  // taken in turn, so that a mma does not wait for the last one
    float sum[chains][4] = {};
#pragma unroll
    for (int of = 0; of < across; of++) {
      uint32_t right[2];
      load_factor(both + side_of_tile * of, right);
      const int first = parts == 2 ? of % 2 * 2 : 0;
      mma_m16n8k16_bf16(sum[first], upper[0][of], right);
      mma_m16n8k16_bf16(sum[first + 1], upper[1][of], right);
      if constexpr (parts == 3) {
        const Quad<uint32_t> left = quad_at(lowest + of * words_of_fragment);
        mma_m16n8k16_bf16(sum[2], left.of, right);
        load_factor(third + side_of_tile / 2 * of, right);
        mma_m16n8k16_bf16(sum[3], upper[0][of], right);
      }
    }
    float* own = sums + turn * warps / groups * all_items * rows_of_two_blocks_sum;
    turn ^= 1;
    // Columns of an item: both parts of dL/dc; or the third part twice, of which one counts.
#pragma unroll
    for (int half = 0; half < 2; half++) {
      auto columns = [&](int chain) { return sum[chain][2 * half] + sum[chain][2 * half + 1]; };
      const float small = parts == 3 ? columns(2) + sum[3][2 * half] : columns(3) + columns(1);
      const float large = parts == 3 ? columns(1) + small : columns(2) + small;
      own[lane % 4 * rows_of_two_blocks_sum + side_of_tile * group.id + 8 * half + lane / 4] =
          columns(0) + large;
    }
    barrier_sync_aligned<32 * groups>(1 + group.warp(), Where::current());
    Sums found;
#pragma unroll
    for (int of = 0; of < items; of++)
      found.of[of] = own[(group.id + of * groups) * rows_of_two_blocks_sum + lane];
    return found;
  }
  __device__ __forceinline__ float carried(const Sums& found, int item) const {
    return found.of[item];
  }
  __device__ __forceinline__ void end_step() { rows.end_step(); }
};

template <int words_of_layer, int parts>
__global__ void __launch_bounds__(32 * ((words_of_layer + 1) / 2) * groups_of_two_blocks, 1)
    lsnn_two_block_matrix_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  using Products = LsnnTwoBlockProducts<words_of_layer, parts>;
  constexpr int groups = Products::groups, items = Products::items;
  // Neighbouring warps have the same neurons, so that those of a scheduler have different ones.
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  const Group group{warp % groups, warp / groups * 32 + lane, shape.threads},
      block = Group::mine((int)blockDim.x);
  Arena arena(shared_memory());
  const LsnnTwoBlocksShared shared(arena, l, shape);
  const int word = Slice(l.N, shape.ranks, (int)cluster_rank()).word + group.warp();
  Products products(
      l, shape, shared, group, word,
      ClusterRows(shared.mbarriers, block, l, shape, Products::all_items * parts / 2),
      (const float*)job.p.w);
  // What pads the last tiles of dL/dc meets weights that are 0.
  for (int i = threadIdx.x; i < shape.slots * shared.slot; i += blockDim.x) shared.dc[i] = 0.f;
  cluster_sync();
  if (word >= (int)words(l.N)) return;  // it has nothing to do, and nobody waits for it
  LsnnItems<Products> pairs{job, group, word,
                            shared.record + group.id * stages_of_record * items * 2 * group.threads,
                            shared.a + group.id * items * steps_of_replay * group.threads};
  const int64_t team = blockIdx.x / shape.ranks, teams = gridDim.x / shape.ranks;
  for (int64_t b = team * Products::all_items; b < l.B; b += teams * Products::all_items)
    pairs.run(b, products, std::make_integer_sequence<int, items>());
}

}  // namespace lsnn::cuda
