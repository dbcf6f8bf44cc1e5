// The backward pass of the paper's network by matrices: that of lsnn_backward.cuh in a cluster, for
// layers whose products may round their factors to bfloat16. Eight or sixteen items go through the
// steps together; so the weights are read once for all of them, and tensor cores multiply them with
// the dL/dc of all.
//
// A factor is one bfloat16 number, or two that add up to it but for its last bits. Of the products
// of two that are made of two, the one of the lower parts is left out. A block has the rows of its
// own neurons. Its warps share out the columns too; hence a sum has parts, which the lane that owns
// the neuron adds, always in the same order. One barrier of the block in a step orders these parts,
// one wait what the blocks of the cluster send.
#pragma once
#include "cluster_rows.cuh"
#include "lsnn_items.cuh"

namespace lsnn::cuda {

// W dL/dc of the block's rows. Which column a place of a mma stands for is ours to choose, as long
// as both factors agree: those of a lane are four neighbours.
template <int parts> struct LsnnMatrixProduct {
  static constexpr int items = pairs_of_lane(parts), sums = parts == 1 ? items : 3;
  uint32_t* const w;  // [down,across,parts,32,4] fragments of tiles
  const int down, across, units;
  const int padded_rows;  // of a part of a sum: so that the stores of a warp meet different banks

  __device__ __forceinline__ LsnnMatrixProduct(uint32_t* fragments, const Layer& l, int rows)
      : w(fragments),
        down(rows / side_of_tile),
        across(tiles_across(l.N)),
        units(units_of_column(l.N)),
        padded_rows(padded_rows_of_sum(rows)) {}

  // from: [n,NP], the rows of the block that there are; the whole block calls. What is beyond is 0.
  __device__ __forceinline__ void copy(const float* from, int n, int NP) const {
    for (int i = threadIdx.x; i < down * across * 32; i += blockDim.x) {
      const int lane = i % 32, tile = i / 32, row = tile / across * side_of_tile + lane / 4,
                column = tile % across * side_of_tile + lane % 4 * 4;
      Quad<float> upper{}, lower{};
      if (row < n && column < NP) upper = quad_at(from + (int64_t)row * NP + column);
      if (row + 8 < n && column < NP) lower = quad_at(from + (int64_t)(row + 8) * NP + column);
#pragma unroll
      for (int part = 0; part < parts; part++)
        store_whole(w + (tile * parts + part) * words_of_fragment + 4 * lane,
                    take_fragment(upper, lower));
    }
  }

  // dc: [8,units,4] of a step, as publish() of LsnnClusterProducts leaves it. to: [shares_of_sum,8
  // items,padded_rows]; a warp makes one part of the sums of a tile of rows.
  __device__ __forceinline__ void multiply(const float* dc, float* to) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = warp / shares_of_sum,
              share = warp % shares_of_sum;
    float sum[sums][4] = {};
#pragma unroll 2
    for (int of = across * share / shares_of_sum; of < across * (share + 1) / shares_of_sum; of++) {
      const Quad<float> unit = quad_at(dc + (lane / 4 * units + 4 * of + lane % 4) * words_of_unit);
      const uint32_t right[2][2] = {{__float_as_uint(unit[0]), __float_as_uint(unit[1])},
                                    {__float_as_uint(unit[2]), __float_as_uint(unit[3])}};
      const uint32_t* from = w + (tile * across + of) * parts * words_of_fragment + 4 * lane;
#pragma unroll
      for (int part = 0; part < parts; part++) {
        const Quad<uint32_t> left = quad_at(from + part * words_of_fragment);
        mma_m16n8k16_bf16(sum[2 * part], left.of, right[0]);
        if (part == 0) mma_m16n8k16_bf16(sum[1], left.of, right[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = tile * side_of_tile + i / 2 * 8 + lane / 4, column = lane % 4 * 2 + i % 2;
      float* own = to + (share * items * columns_of_mma + column) * padded_rows + row;
      if constexpr (parts == 1) {
#pragma unroll
        for (int item = 0; item < items; item++)
          own[item * columns_of_mma * padded_rows] = sum[item][i];
      } else {
        *own = sum[0][i] + (sum[1][i] + sum[2][i]);
      }
    }
  }
  // from: as multiply() leaves them.
  __device__ __forceinline__ float total(const float* from, int column, int row) const {
    float all = 0.f;
#pragma unroll
    for (int share = 0; share < shares_of_sum; share++)
      all += from[(share * items * columns_of_mma + column) * padded_rows + row];
    return all;
  }
};

// The products of a cluster. A group has the neurons of the block in one of eight items, or in two
// of sixteen.
template <int parts> struct LsnnClusterProducts : LsnnSlots {
  static constexpr int items = pairs_of_lane(parts), next = columns_of_mma;
  const Group group;
  const int word;  // of the warp's neurons
  ClusterRows rows;
  const LsnnMatrixProduct<parts> product;
  float* const dc;  // [slots,slot]
  const int slot;  // [8,units,4]
  float* const sums;  // [2,shares_of_sum,8 items,padded_rows]
  int turn = 0;  // which of the two sums

  // x: dL/dc of the lane's neuron in its items. A unit has four neighbouring neurons: both parts of
  // one item, or the parts of two. Eight lanes have the units of the warp and send them to a block.
  __device__ __forceinline__ void publish(const float (&x)[items]) const {
    rows.begin_step();
    const uint32_t upper = cvt_rn_bf16x2_f32(x[0], 0.f);
    const float other = parts == 1 ? x[items - 1] : x[0] - __uint_as_float(upper << 16);
    const uint32_t own = cvt_rn_bf16x2_f32(x[0], other);
    const unsigned lane = threadIdx.x % 32;
    float unit[words_of_unit];
    gather_halves(own, lane % 8 * 4, unit);
    const int quad = 8 * word + (int)(lane % 8);
    if (4 * quad < rows.NP)
      rows.send(dc + written * slot + (group.id * product.units + quad) * words_of_unit, unit,
                (int)lane / 8, 4);
  }
  using Sums = const float*;
  __device__ __forceinline__ static constexpr bool multiplies_first() { return false; }
  // The product of the step d + 1 later, of which every lane finds its sums at the returned place.
  __device__ __forceinline__ const float* multiply() {
    float* to = sums + turn * shares_of_sum * items * columns_of_mma * product.padded_rows;
    product.multiply(dc + before(before(written)) * slot, to);
    turn ^= 1;
    __syncthreads();
    return to;
  }
  __device__ __forceinline__ float carried(const float* of, int item) const {
    return product.total(of, item * columns_of_mma + group.id, group.thread);
  }
  __device__ __forceinline__ void end_step() { rows.end_step(); }
};

template <int parts> __global__ void __launch_bounds__(most_threads_lsnn_cluster, 1)
    lsnn_matrix_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads), block = Group::mine((int)blockDim.x);
  constexpr int items = pairs_of_lane(parts);
  Arena arena(shared_memory());
  const LsnnMatrixShared shared(arena, l, shape);
  const int N = (int)l.N, NP = (int)padded(l.N),
            word = Slice(l.N, shape.ranks, (int)cluster_rank()).word;
  const int first_word = word + group.warp();
  LsnnClusterProducts<parts> products{
      {shape.slots},
      group,
      first_word,
      ClusterRows(shared.mbarriers, block, l, shape, columns_of_mma),
      LsnnMatrixProduct<parts>(shared.w, l, shared.rows),
      shared.dc,
      shared.slot,
      shared.sums};
  products.product.copy((const float*)job.p.w + (int64_t)32 * word * NP, N - 32 * word, NP);
  // What pads the last tiles of dL/dc meets weights that are 0.
  for (int i = threadIdx.x; i < shape.slots * shared.slot; i += blockDim.x) shared.dc[i] = 0.f;
  cluster_sync();
  if (word >= (int)words(l.N)) return;  // nothing is sent to a block without neurons
  LsnnItems<LsnnClusterProducts<parts>> pairs{
      job, group, first_word,
      shared.record + group.id * stages_of_record * items * 2 * group.threads,
      shared.a + group.id * items * steps_of_replay * group.threads};
  const int64_t team = blockIdx.x / shape.ranks, teams = gridDim.x / shape.ranks,
                at_once = items * columns_of_mma;
  for (int64_t b = team * at_once; b < l.B; b += teams * at_once)
    pairs.run(b, products, std::make_integer_sequence<int, items>());
}

}  // namespace lsnn::cuda
