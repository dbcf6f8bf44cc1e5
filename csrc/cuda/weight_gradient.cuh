// dL/dw: the sum over steps and items of z_j[t-1-d_jk] dL/dc_k[t], by events and always in the same order. A block sums a tile
// of the matrix over a part of the steps and items in shared memory, a thread to a column; then the parts are added up.
#pragma once
#include "replay.cuh"

namespace lsnn::cuda {

template <class T> struct WeightJob : BackwardJob<T> {
  WeightTiles tiles;
  T* parts;  // [parts,N,N]
};

template <class T> __global__ void __launch_bounds__(256) weight_gradient_kernel(WeightJob<T> job) {
  const BackwardArgs& f = job.f;
  const Layer& l = f.layer;
  const WeightTiles& tiles = job.tiles;
  const int N = (int)l.N, W = (int)words(l.N), tile = int(blockIdx.x % tiles.count()), part = int(blockIdx.x / tiles.count());
  const int j0 = tile / tiles.across * tiles.rows, k = tile % tiles.across * tiles.columns + (int)threadIdx.x;
  const int rows = N - j0 < tiles.rows ? N - j0 : tiles.rows, tile_words = tiles.rows / 32, w0 = j0 / 32;
  const bool mine = (int)threadIdx.x < tiles.columns && k < N;
  Arena arena(shared_memory());
  const WeightShared<T> shared(arena, tiles);
  T* sum = shared.sum + threadIdx.x;  // the thread's column
  for (int j = 0; mine && j < rows; j++) sum[j * tiles.columns] = T(0);

  const int64_t all = l.T * l.B, first = all * part / tiles.parts, last = all * (part + 1) / tiles.parts;
  for (int64_t i0 = first; i0 < last; i0 += items_at_once)
    for (int d = 0; d < l.S; d++) {
      const int delay = job.p.delays[d];
      __syncthreads();  // the words before have been used
      for (int i = threadIdx.x; i < items_at_once * tile_words; i += blockDim.x) {
        const int64_t item = i0 + i / tile_words, past = item / l.B - 1 - delay;
        const int w = w0 + i % tile_words;
        shared.words[i] = item < last && past >= 0 && w < W ? f.saved.bits[(past * l.B + item % l.B) * W + w] : 0;
      }
      __syncthreads();
      if (!mine) continue;
      auto add = [&](int j, T g) {  // j: row of the tile
        if (l.S == 1 || l.delay[(int64_t)(j0 + j) * N + k] == delay) sum[j * tiles.columns] += g;
      };
      for (int64_t i1 = i0; i1 < last && i1 < i0 + items_at_once; i1 += loads_at_once) {
        T g[loads_at_once];
#pragma unroll
        for (int i = 0; i < loads_at_once; i++) g[i] = i1 + i < last ? ((const T*)f.gx)[(i1 + i) * N + k] : T(0);
#pragma unroll
        for (int i = 0; i < loads_at_once; i++) {
          if (i1 + i >= last) break;
          const int64_t past = (i1 + i) / l.B - 1 - delay, b = (i1 + i) % l.B;
          const T x = g[i];
          if (past < 0 || l.smooth) {  // spikes that are any number
            const T* z = (past < 0 ? first_z<T>(f.first, l, past, b) : (const T*)f.saved.z + (past * l.B + b) * l.N) + j0;
            for (int j = 0; j < rows; j++)
              if (z[j] != T(0)) add(j, z[j] * x);
          } else {
            const uint32_t* words = shared.words + (i1 - i0 + i) * tile_words;
            for (int w = 0; w < tile_words; w++)
              for (uint32_t some = words[w]; some; some &= some - 1) add(32 * w + __ffs((int)some) - 1, x);
          }
        }
      }
    }
  for (int j = 0; mine && j < rows; j++) job.parts[((int64_t)part * N + j0 + j) * N + k] = sum[j * tiles.columns];
}

// out[i] = the sum of parts[p][i], part after part.
template <class T> struct SumJob {
  const T* parts;    // [n_parts,stride]
  T* out;            // [n]
  int64_t n, stride, n_parts;
  uint64_t rows;     // bit r: row r of out is wanted; all where row_length = 0
  int64_t row_length, padded_length;
};
template <class T> __global__ void sum_parts_kernel(SumJob<T> job) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += (int64_t)gridDim.x * blockDim.x) {
    int64_t at = i;
    if (job.row_length) {
      const int64_t row = i / job.row_length;
      if (!(job.rows >> row & 1)) continue;
      at = row * job.padded_length + i % job.row_length;
    }
    T total = T(0);
    for (int64_t p = 0; p < job.n_parts; p++) total = total + job.parts[p * job.stride + at];
    job.out[i] = total;
  }
}

}  // namespace lsnn::cuda
