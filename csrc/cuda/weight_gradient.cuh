// dL/dw: the sum over steps and items of z_j[t-1-d_jk] dL/dc_k[t], event-driven and always in the
// same order. A block sums a tile of the matrix over a slice of the steps and items in shared
// memory, with a thread for each column; then the partial sums are added.
#pragma once
#include "replay.cuh"
#include "sequence.cuh"

namespace lsnn::cuda {

template <class T> struct WeightJob : BackwardJob<T> {
  WeightTiles tiles;
  int64_t items;  // of steps: the first ones of [T,B]
  T* partial_sums;  // [slices,matrices,N,N]
};

// A step of an item, as an index into [T,B].
struct ItemStep {
  int64_t t, b;

  LSNN_METHOD ItemStep(int64_t index, int64_t B) : t(index / B), b(index % B) {}
  LSNN_METHOD void advance(int64_t B) {
    if (++b == B) {
      b = 0;
      t++;
    }
  }
};

template <class T> __global__ void __launch_bounds__(256, 1)
    weight_gradient_kernel(WeightJob<T> job) {
  const BackwardArgs& f = job.f;
  const Layer& l = f.layer;
  const WeightTiles& tiles = job.tiles;
  const int N = (int)l.N, W = (int)words(l.N);
  const int all_tiles = blockIdx.x % (int)tiles.count(), slice = blockIdx.x / (int)tiles.count();
  // A matrix for each delay has its own blocks; a single matrix loops over the delays.
  const int of = all_tiles / (int)tiles.of_matrix(), tile = all_tiles % (int)tiles.of_matrix();
  const bool own_delays = matrices(l) != l.S;
  const int d0 = own_delays ? 0 : of, d1 = own_delays ? (int)l.S : of + 1;
  const int j0 = tile / tiles.across * tiles.rows,
            k = tile % tiles.across * tiles.columns + (int)threadIdx.x;
  const int rows = N - j0 < tiles.rows ? N - j0 : tiles.rows, w0 = j0 / 32,
            n_words = (rows + 31) / 32;
  const bool mine = (int)threadIdx.x < tiles.columns && k < N;
  const uint32_t last_word = N % 32 ? (1u << N % 32) - 1 : ~0u;
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  Arena arena(shared_memory());
  const WeightShared<T> shared(arena, tiles);
  T* sum = shared.sum + threadIdx.x;  // the thread's column
  for (int j = 0; mine && j < rows; j++) sum[j * tiles.columns] = T(0);

  const int64_t all = job.items, first = all * slice / tiles.slices,
                last = all * (slice + 1) / tiles.slices;
  for (int64_t i0 = first; i0 < last; i0 += items_at_once)
    for (int d = d0; d < d1; d++) {
      const int delay = job.p.delays[d];
      const ItemStep start(i0, l.B);
      __syncthreads();  // the previous lists have been read
      // Each warp lists the rows of one item at a time.
      for (int i = warp; i < items_at_once; i += warps) {
        const ItemStep at(i0 + i, l.B);
        const int64_t past = at.t - 1 - delay;
        const uint32_t* bits = f.saved.bits + (past * l.B + at.b) * W + w0;
        const bool some = i0 + i < last && past >= 0 && at.t < job.p.length(l, at.b);
        // Bits beyond N, in tensors not written by the forward pass, would become rows of another
        // tile.
        auto word = [&](int w) {
          return !some ? 0 : w0 + w == W - 1 ? bits[w] & last_word : bits[w];
        };
        const int n = list_neurons(word, 0, n_words, lane, shared.list + i * list_size);
        if (lane == 0) shared.listed[i] = n;
      }
      __syncthreads();
      if (!mine) continue;
      auto add = [&](int j, T g) {  // j: row of the tile
        if (!own_delays || l.delay[(int64_t)(j0 + j) * N + k] == delay) sum[j * tiles.columns] += g;
      };
      ItemStep at = start;
      for (int i1 = 0; i1 < items_at_once; i1 += loads_at_once) {
        T g[loads_at_once];
#pragma unroll
        for (int i = 0; i < loads_at_once; i++)
          g[i] = i0 + i1 + i < last ? ((const T*)f.gx)[(i0 + i1 + i) * N + k] : T(0);
#pragma unroll
        for (int i = 0; i < loads_at_once; i++, at.advance(l.B)) {
          if (i0 + i1 + i >= last) break;
          const int64_t past = at.t - 1 - delay;
          if (past < 0 || l.smooth) {  // spikes as real numbers
            const T* z = past < 0 ? first_z<T>(f.first, l, past, at.b)
                                  : (const T*)f.saved.z + (past * l.B + at.b) * l.N;
            for (int j = 0; z && j < rows; j++)
              if (z[j0 + j] != T(0)) add(j, z[j0 + j] * g[i]);
            continue;
          }
          const uint16_t* list = shared.list + (i1 + i) * list_size;
          const int n = shared.listed[i1 + i];
          int e = 0;
          for (; e + 4 <= n; e += 4) {  // independent rows
            const Quad<uint16_t> j = quad_at(list + e);
            if (own_delays) {
              for (int q = 0; q < 4; q++) add(j.pick(q), g[i]);
              continue;
            }
            T s[4];
#pragma unroll
            for (int q = 0; q < 4; q++) s[q] = sum[j[q] * tiles.columns];
#pragma unroll
            for (int q = 0; q < 4; q++) sum[j[q] * tiles.columns] = s[q] + g[i];
          }
          for (; e < n; e++) add(list[e], g[i]);
        }
      }
    }
  for (int j = 0; mine && j < rows; j++) {
    const int64_t row = ((int64_t)slice * tiles.matrices + of) * N + j0 + j;
    job.partial_sums[row * N + k] = sum[j * tiles.columns];
  }
}

// out[i] = sum of partial_sums[p][i] over p, in order.
template <class T> struct SumJob {
  const T* partial_sums;  // [n_partial_sums,stride]
  T* out;  // [n]
  int64_t n, stride, n_partial_sums;
  uint64_t rows;  // bit r: row r of out is wanted; all where row_length = 0
  int64_t row_length, padded_length;
  int64_t diagonal = 0;  // N: out is [..,N,N] with zeros on the diagonals
  int64_t transposed = 0;  // M: the sums are [M,n/M], and out is their transpose
};
template <class T> __global__ void sum_partial_kernel(SumJob<T> job) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n;
       i += (int64_t)gridDim.x * blockDim.x) {
    int64_t at = i;
    if (job.row_length) {
      const int64_t row = i / job.row_length;
      if (!(job.rows >> row & 1)) continue;
      at = row * job.padded_length + i % job.row_length;
    }
    if (const int64_t M = job.transposed) at = i % M * (job.n / M) + i / M;
    T total = T(0);
    const int64_t N = job.diagonal;
    const bool is_zero = N && i % (N * N) % (N + 1) == 0;
    for (int64_t p = 0; !is_zero && p < job.n_partial_sums; p++)
      total = total + job.partial_sums[p * job.stride + at];
    job.out[i] = total;
  }
}
template <class T> void sum_partial(const char* what, const SumJob<T>& job, void* stream) {
  const int64_t blocks = (job.n + 255) / 256;
  launch(what, {blocks < 4096 ? blocks : 4096, 256, 0, 1, stream}, &sum_partial_kernel<T>, job);
}

}  // namespace lsnn::cuda
