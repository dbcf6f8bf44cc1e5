// A weight gradient by tensor cores. dL/dw_jk of recurrent weights is the sum over steps and items
// of z_j[t-1-d] dL/dc_k[t]; for input weights z are the inputs. This is a matrix product whose left
// factor holds spikes. A spike is exact in bfloat16, and a float is the sum of three bfloat16
// numbers, its upper, middle and lower bits. So products are exact and only sums round; below about
// 1e-33 the lower bits are lost. If factors may round, a float is split into one number or two, of
// which the last is rounded. Split-K: a block has a tile of the matrix and a slice of the steps and
// items; warps share nothing, so there is no barrier. For one delay and float; steps whose spikes
// come before the sequence are summed by weight_gradient.cuh.
//
// An mma adds 16 items of steps to 16 rows and 8 columns. The instruction defines the layout over
// lanes; items, rows and columns may be permuted, as long as both factors agree. Here a lane's four
// items are adjacent, so that it reads four rows of dL/dc, and the columns of four adjacent mmas
// form quads, so that it reads and writes full quads.
#pragma once
#include "neurons.cuh"
#include "spike_product.h"

namespace lsnn::cuda {

// Items of steps that a mma adds, and those of a lane.
inline constexpr int items_of_mma = 16, items_of_lane = 4;
// Items after which sums are added to float32 accumulators: tensor cores were observed to truncate
// sums towards 0.
inline constexpr int items_of_sum = 64 * items_of_mma;

// Two floats truncated to bfloat16, the first in the lower half.
LSNN_DEVICE uint32_t upper_halves(float first, float second) {
  return __float_as_uint(first) >> 16 | (__float_as_uint(second) & 0xffff0000u);
}
LSNN_DEVICE float without_upper_half(float x) {
  return x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
}

// A lane's share of the right factor: a quad of columns of four items, split into parts. The last
// index is that of the instruction: items 0 and 1, 2 and 3.
template <int parts> struct GradientFragments {
  uint32_t of[parts][4][2];

  __device__ __forceinline__ explicit GradientFragments(Quad<float> (&g)[items_of_lane]) {
#pragma unroll
    for (int part = 0; part < parts; part++)
#pragma unroll
      for (int q = 0; q < 4; q++)
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
          float &first = g[2 * pair][q], &second = g[2 * pair + 1][q];
          const bool is_rounded = parts < exact_parts && part == parts - 1;
          of[part][q][pair] =
              is_rounded ? cvt_rn_bf16x2_f32(first, second) : upper_halves(first, second);
          first = without_upper_half(first);
          second = without_upper_half(second);
        }
  }
};

// A lane's share of the left factor: rows `row` and row + 8 of 16, of the same items, as 1 or 0.
LSNN_DEVICE void spike_fragment(const uint32_t (&word)[items_of_lane], int row, uint32_t (&of)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t *pair = word + i / 2 * 2, shift = row + i % 2 * 8;
    const uint32_t spikes = (pair[0] >> shift & 1) | (pair[1] >> shift & 1) << 16;
    of[i] = spikes * 0x3f80;  // 1 in bfloat16
  }
}

template <bool whole, int parts> __global__ void __launch_bounds__(32 * warps_of_product, 1)
    spike_product_kernel(SpikeProductJob job) {
  const int N = (int)job.N, W = (int)words(job.M), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tile = blockIdx.x % (int)job.tiles.count(), slice = blockIdx.x / (int)job.tiles.count();
  const int word0 = (tile / job.tiles.across * warps_down + warp / warps_across) * words_of_warp,
            column0 = (tile % job.tiles.across * warps_across + warp % warps_across) * 32;
  if (word0 >= W || column0 >= N) return;
  const int of_lane = lane % 4 * items_of_lane, row = lane / 4, column = column0 + 4 * row;
  const int live = N - column < 0 ? 0 : N - column < 4 ? N - column : 4;
  const int64_t first = job.K * slice / job.tiles.slices,
                last = job.K * (slice + 1) / job.tiles.slices;
  const float* g0 = job.g + column;
  const uint32_t* bits = job.bits + word0;

  float total[2 * words_of_warp][4][4] = {}, sum[2 * words_of_warp][4][4] = {};
  auto add_sums = [&] {
#pragma unroll
    for (int m = 0; m < 2 * words_of_warp; m++)
#pragma unroll
      for (int q = 0; q < 4; q++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          total[m][q][i] += sum[m][q][i];
          sum[m][q][i] = 0;
        }
  };
  Quad<float> g[items_of_lane];
  uint32_t word[words_of_warp][items_of_lane];
  auto load = [&](int64_t i0) {
#pragma unroll
    for (int i = 0; i < items_of_lane; i++) {
      const int64_t item = i0 + of_lane + i;
      const bool some = item < last;
      g[i] = load_row<whole>(g0 + item * N, some ? live : 0);
#pragma unroll
      for (int w = 0; w < words_of_warp; w++)
        word[w][i] = some && word0 + w < W ? bits[item * W + w] : 0;
    }
  };
  load(first);
  for (int64_t i0 = first; i0 < last;) {
    const int64_t end = last - i0 < items_of_sum ? last : i0 + items_of_sum;
#pragma unroll 1
    for (; i0 < end; i0 += items_of_mma) {
      const GradientFragments<parts> right(g);
      uint32_t left[2 * words_of_warp][4];
#pragma unroll
      for (int m = 0; m < 2 * words_of_warp; m++)
        spike_fragment(word[m / 2], m % 2 * 16 + row, left[m]);
      load(i0 + items_of_mma);  // overlaps the tensor cores
#pragma unroll
      for (int part = 0; part < parts; part++)
#pragma unroll
        for (int q = 0; q < 4; q++)
#pragma unroll
          for (int m = 0; m < 2 * words_of_warp; m++)
            mma_m16n8k16_bf16(sum[m][q], left[m], right.of[part][q]);
    }
    add_sums();
  }
  // A lane has columns 2 (lane % 4) and the next one of each mma: two quads of a row.
#pragma unroll
  for (int m = 0; m < 2 * words_of_warp; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int j = 32 * word0 + 16 * m + i / 2 * 8 + row, k = column0 + 8 * (lane % 4) + i % 2 * 4;
      if (j >= job.M || k >= N) continue;
      const Quad<float> out{{total[m][0][i], total[m][1][i], total[m][2][i], total[m][3][i]}};
      float* to = job.partial_sums + ((int64_t)slice * job.M + j) * N + k;
      store_row<whole>(to, out, N - k < 4 ? N - k : 4);
    }
}

}  // namespace lsnn::cuda
