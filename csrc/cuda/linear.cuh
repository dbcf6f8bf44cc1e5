// The linear map of inputs as bits, y = x W^T + bias. A warp computes a row of y: it adds the rows
// of the transposed weights whose inputs are 1, in ascending order, so that results are bitwise
// identical to the CPU's. Its operands are small and stay in the caches. The weight gradient is a
// product of spikes, see spike_product.cuh.
#pragma once
#include "quad.cuh"

namespace lsnn::cuda {

inline constexpr int linear_threads = 256;  // of a block
inline constexpr int linear_warps = linear_threads / 32;

struct LinearJob {
  Linear l;
  float* weights;  // [I,NP] transposed, 0 beyond N
};

__global__ void __launch_bounds__(linear_threads) linear_transpose_kernel(LinearJob job) {
  const Linear& l = job.l;
  const int64_t NP = padded(l.N), at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= l.I * NP) return;
  const int64_t i = at / NP, n = at % NP;
  const float* w = (const float*)l.w + i * l.w_stride_i;
  job.weights[at] = n < l.N ? w[n * l.w_stride_n] : 0.0f;
}

// Adds the rows of the set inputs of a word, whose first input has the row `rows`, two in a round.
// A lane has `quads` quads of a row, 128 columns apart. A missing second row is replaced by -0,
// which changes no sum.
template <int quads> LSNN_DEVICE void add_rows(uint32_t word, const char* rows, uint32_t row_bytes,
                                               const int (&live)[quads],
                                               Quad<float> (&sum)[quads]) {
  constexpr int at_once = 2;
  while (word) {
    Quad<float> row[at_once][quads];
#pragma unroll
    for (int k = 0; k < at_once; k++) {
      const uint64_t at = (uint64_t)row_bytes * (uint32_t)(__ffs((int)word) - 1);
      const float* first = reinterpret_cast<const float*>(rows + at);
#pragma unroll
      for (int c = 0; c < quads; c++) {
        row[k][c] = Quad<float>::all(-0.0f);
        if (word && live[c] > 0) row[k][c] = constant_quad<false>(first + 128 * c);
      }
      word &= word - 1;
    }
#pragma unroll
    for (int k = 0; k < at_once; k++)
#pragma unroll
      for (int c = 0; c < quads; c++)
#pragma unroll
        for (int q = 0; q < 4; q++) sum[c][q] = sum[c][q] + row[k][c][q];
  }
}

template <int quads, bool whole> __global__ void __launch_bounds__(linear_threads)
    linear_forward_kernel(LinearJob job) {
  const Linear& l = job.l;
  const int N = (int)l.N, W = (int)words(l.I);
  const uint32_t row_bytes = (uint32_t)padded(N) * sizeof(float),
                 inputs_of_last = ~0u >> (32 * W - (int)l.I);  // of the last word
  const int64_t warps = (int64_t)gridDim.x * linear_warps,
                first = (int64_t)blockIdx.x * linear_warps + threadIdx.x / 32;
  for (int64_t r = first; r < l.R; r += warps)
    for (int n = threadIdx.x % 32 * 4; n < N; n += 128 * quads) {
      int live[quads];
      Quad<float> sum[quads]{};
#pragma unroll
      for (int c = 0; c < quads; c++) {
        const int columns = N - n - 128 * c;
        live[c] = columns < 4 ? columns : 4;
        if (l.bias) sum[c] = load((const float*)l.bias + n + 128 * c, live[c]);
      }
      const char* rows = reinterpret_cast<const char*>(job.weights + n);
      const uint32_t* word = l.bits + r * W;
      for (int left = W; left > 0; left--, word++, rows += 32 * (uint64_t)row_bytes)
        add_rows(left > 1 ? *word : *word & inputs_of_last, rows, row_bytes, live, sum);
#pragma unroll
      for (int c = 0; c < quads; c++)
        if (live[c] > 0) store_row<whole>((float*)l.y + r * N + n + 128 * c, sum[c], live[c]);
    }
}

}  // namespace lsnn::cuda
