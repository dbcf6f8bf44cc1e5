// The backward pass of the paper's network by matrices in one block, which has all weights. A lane
// owns a neuron in two items. A warp multiplies the 32 rows of its own neurons, so that no sum
// leaves it, and holds them in registers as fragments, permuted so that four lanes have the sums of
// their own four neurons. The order of a step is that of lsnn_matrix_cluster.cuh, with one barrier
// at its end: rows of earlier steps are complete, and the slot that a step reads is written by the
// next one at the earliest, so d + 2 slots suffice.
//
// With one part the columns of an mma are the two items, repeated four times, so that each lane has
// the sums of both. With two parts they are both parts of either item, repeated twice: a lane adds
// them, and exchanges one sum with its neighbour. The weights' lower parts are in shared memory.
#pragma once
#include "lsnn_items.cuh"

namespace lsnn::cuda {

template <int warps, int parts>
struct LsnnBlockProducts : LsnnSlots<pairs_of_lane * parts * numbers_of_column(32 * warps), 1> {
  using Slots = typename LsnnBlockProducts::LsnnSlots;
  using Slots::written, Slots::read;
  static constexpr int items = pairs_of_lane;
  static constexpr int across = 2 * warps, down = 2;  // tiles of all columns and of a warp's rows
  static constexpr int columns = items * parts, column = numbers_of_column(32 * warps);
  uint16_t* const dc;  // [slots,columns,column]
  uint32_t* const lower;  // [down,across,words_of_fragment] of the warp, from the lane's element on
  uint32_t upper[down][across][4];

  // from: [N,NP], all weights; 0 beyond.
  __device__ __forceinline__ LsnnBlockProducts(const float* from, int N, int NP,
                                               const LsnnBlockMatrixShared& shared, int n_slots)
      : Slots(n_slots),
        dc(shared.dc),
        lower(shared.lower +
              (threadIdx.x / 32 * down * across * words_of_fragment + threadIdx.x % 32 * 4)) {
    const int first = (int)threadIdx.x / 4 * 4, place = (int)threadIdx.x % 4 * 4;
#pragma unroll
    for (int tile = 0; tile < down; tile++)
#pragma unroll
      for (int of = 0; of < across; of++) {
        Quad<uint32_t> rest;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = first + 2 * tile + half, at = side_of_tile * of + place;
          Quad<float> x{};
          if (row < N && at < NP) x = quad_at(from + (int64_t)row * NP + at);
#pragma unroll
          for (int pair = 0; pair < 2; pair++) {
            upper[tile][of][2 * pair + half] = take_upper(x[2 * pair], x[2 * pair + 1]);
            if (parts == 2) rest[2 * pair + half] = take_upper(x[2 * pair], x[2 * pair + 1]);
          }
        }
        // Read only by this lane.
        if (parts == 2) store_whole(lower + (tile * across + of) * words_of_fragment, rest);
      }
  }
  // x: dL/dc of the lane's neuron in its items.
  __device__ __forceinline__ void publish(const float (&x)[items]) const {
    uint16_t* to = dc + written + threadIdx.x;
#pragma unroll
    for (int item = 0; item < items; item++) {
      const uint32_t upper_part = cvt_rn_bf16x2_f32(x[item], 0.f);
      to[item * parts * column] = (uint16_t)upper_part;
      if constexpr (parts == 2)
        to[(item * parts + 1) * column] =
            (uint16_t)cvt_rn_bf16x2_f32(x[item] - __uint_as_float(upper_part << 16), 0.f);
    }
  }
  __device__ __forceinline__ void await() const {}
  struct Sums { float of[items]; };
  // The product with the row of step t + 1 + d, whose slot is the next to be written.
  __device__ __forceinline__ Sums multiply() const {
    const int lane = (int)threadIdx.x % 32;
    const uint16_t* from = dc + read + lane / 4 % columns * column + lane % 4 * 4;
    constexpr int chains = parts == 1 ? 2 : 3;
    float sum[chains][down][4] = {};  // in turn, so that consecutive mmas are independent
#pragma unroll
    for (int of = 0; of < across; of++) {
      uint32_t right[2];
      load_factor(from + side_of_tile * of, right);
#pragma unroll
      for (int tile = 0; tile < down; tile++) {
        mma_m16n8k16_bf16(sum[of * parts % chains][tile], upper[tile][of], right);
        if constexpr (parts == 2) {
          const Quad<uint32_t> left = quad_at(lower + (tile * across + of) * words_of_fragment);
          mma_m16n8k16_bf16(sum[(of * parts + 1) % chains][tile], left.of, right);
        }
      }
    }
    const bool second_tile = lane & 2, second_half = lane & 1;
    auto total = [&](int tile, int i) {
      const float all = sum[0][tile][i] + sum[1][tile][i];
      return parts == 1 ? all : all + sum[chains - 1][tile][i];
    };
    // Sum i of row `half` in the tile of the lane's own row.
    auto of_row = [&](int half, int i) {
      return second_tile ? total(1, 2 * half + i) : total(0, 2 * half + i);
    };
    Sums found;
    if constexpr (parts == 1) {
#pragma unroll
      for (int item = 0; item < items; item++) {
        const float rows[2] = {of_row(0, item), of_row(1, item)};
        found.of[item] = second_half ? rows[1] : rows[0];
      }
    } else {
      const float rows[2] = {of_row(0, 0) + of_row(0, 1), of_row(1, 0) + of_row(1, 1)};
      const float own = second_half ? rows[1] : rows[0];
      const float other = __shfl_xor_sync(~0u, second_half ? rows[0] : rows[1], 1);
      found.of[0] = second_half ? other : own;
      found.of[1] = second_half ? own : other;
    }
    return found;
  }
  __device__ __forceinline__ float carried(const Sums& found, int item) const {
    return found.of[item];
  }
  __device__ __forceinline__ void end_step() const { __syncthreads(); }
  __device__ __forceinline__ void finish() const {}
};

template <int warps, int parts> __global__ void __launch_bounds__(32 * warps, 1)
    lsnn_block_matrix_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  Arena arena(shared_memory());
  const LsnnBlockMatrixShared shared(arena, l, shape);
  using Products = LsnnBlockProducts<warps, parts>;
  Products products((const float*)job.p.w, (int)l.N, (int)padded(l.N), shared, shape.slots);
  LsnnItems<Products> pairs{job, Group::mine(32 * warps), (int)threadIdx.x / 32, shared.record,
                            shared.a};
  for (int64_t b = (int64_t)blockIdx.x * pairs_of_lane; b < l.B;
       b += (int64_t)gridDim.x * pairs_of_lane)
    pairs.run(b, products, std::make_integer_sequence<int, pairs_of_lane>());
}

}  // namespace lsnn::cuda
