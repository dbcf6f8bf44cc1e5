// The backward pass (BPTT) of a whole sequence in one launch, chunk by chunk from the end. The
// states of a chunk are replayed from the last saved one; for each step the product with the
// weights, for active neurons only, and the adjoint of step() give dL/dc. The weight gradient is
// summed afterwards, see weight_gradient.cuh.
#pragma once
#include "cluster_rows.cuh"
#include "lane_sums.cuh"
#include "replay.cuh"
#include "sequence.cuh"

namespace lsnn::cuda {

template <class T> struct BackwardSequence : BackwardJob<T> {
  Shape shape;
  T* replayed;  // [groups of all blocks,replayed_rows,width]
};

// Distributes dL/dc of a step: into `row` [NP] of each block.
//
// In one block: a barrier.
template <class T> struct BlockGradients {
  static constexpr bool in_cluster = false;
  __device__ __forceinline__ BlockGradients(const Group&, uint64_t*, const Layer&, const Shape&) {}
  __device__ __forceinline__ void publish(T* row, const Cell& cell, const Quad<T>& dc) const {
    store_whole(row + cell.n, dc);
  }
  __device__ __forceinline__ void end_step(const Group& group) const { group.sync(); }
};

// Across a cluster, see cluster_rows.cuh. In step n a warp reads the rows of n - D to n - 1, then
// sends n. Row n + 1, which replaces n - D, is sent after the wait for n: all warps have sent n and
// read n - D. So D + 1 rows suffice.
template <class T> struct ClusterGradients {
  static_assert(sizeof(T) == 4);
  static constexpr bool in_cluster = true;
  ClusterRows<2> rows;

  __device__ __forceinline__ ClusterGradients(const Group& group, uint64_t* mbarriers,
                                              const Layer& l, const Shape& shape)
      : rows(mbarriers, group, l, shape, 4 * padded(l.N)) {}
  __device__ __forceinline__ void publish(T* row, const Cell& cell, const Quad<T>& dc) const {
    rows.begin_step();  // once per step, as a lane has one quad
    rows.send(row + cell.n, dc.of, 0, 1);
  }
  __device__ __forceinline__ void end_step(const Group& group) {
    rows.end_step();
    group.sync();  // holds warps without neurons, which send nothing
    // No barrier for dz: its readers sent dL/dc after reading it.
  }
};

inline constexpr int rows_of_product = 8;  // that are reduced together

// C: quads of a lane. rows_in_shared: whether weight rows lie in shared memory.
template <class T, class Spec, class Gradients, int C, bool rows_in_shared> struct BackwardGroup {
  static_assert(C == 1 || !Gradients::in_cluster);
  const BackwardSequence<T>& job;
  const Spec spec;
  const Group group;
  const Slice slice;
  Gradients& gradients;
  const T* w;         // [S,w_rows,NP], from the first neuron of the slice on
  const int w_rows;
  T* const dc;        // [slots,NP]
  T* const dz;        // [rows]
  uint32_t* const active;  // [chunk,words]
  uint16_t* const list;    // [list_size] of this warp
  const Replayed<T> replayed;
  const int first_delay;
  const bool choose;  // whether neurons can be inactive
  unsigned turn = 0;  // of step 0 of the item

  __device__ __forceinline__ int column(int c) const {
    return 4 * (group.thread + c * group.threads);
  }
  __device__ __forceinline__ unsigned marked(const uint32_t* marks, int c, const Cell& cell) const {
    return cell.live ? marks[column(c) / 32] >> column(c) % 32 & 15 : 0;
  }
  // Rows rotate over steps and items, so that a block which has begun the next item overwrites no
  // row that another still reads.
  __device__ __forceinline__ T* dc_of(int t) const {
    const unsigned slots = (unsigned)job.shape.slots;
    return dc + (slots == 1 ? 0 : (turn - (unsigned)t) % slots) * padded(job.f.layer.N);
  }

  // --------------------------------------------------------------------------------------- product
  // dz[j] = sum over delays d and k of w_jk dL/dc_k[t + 1 + d], for eight rows j of the slice.
  // length: steps of the item.
  __device__ __forceinline__ void rows_product(int length, int t,
                                               const int (&rows)[rows_of_product], int n) const {
    const Layer& l = job.f.layer;
    const int NP = (int)padded(l.N);
    T sum[rows_of_product] = {};
    for (int d = 0; d < l.S; d++) {
      const int reached = t + 1 + (d ? job.p.delays[d] : first_delay);
      if (reached < 0 || reached >= length) continue;
      const T* x = dc_of(reached);
      const T* from = w + (int64_t)d * w_rows * NP;
      for (int k = 4 * group.lane(); k < NP; k += 128) {
        const Quad<T> g = quad_at(x + k);
        Quad<T> row[rows_of_product];
#pragma unroll
        for (int i = 0; i < rows_of_product; i++)
          row[i] = constant_quad<rows_in_shared>(from + rows[i] * NP + k);
#pragma unroll
        for (int i = 0; i < rows_of_product; i++)
#pragma unroll
          for (int q = 0; q < 4; q++) sum[i] = fma_(row[i][q], g[q], sum[i]);
      }
    }
    const T total = sum_lanes(sum, group.lane());
    const int i = row_of_lane(group.lane());
    int row = rows[0];
#pragma unroll
    for (int r = 1; r < rows_of_product; r++) row = i == r ? rows[r] : row;
    if (group.lane() % 4 == 0 && i < n) dz[row] = total;
  }
  // For the marked rows of the slice, or for all if `marks` is null; eight rows per warp at a time.
  __device__ __forceinline__ void product(int length, int t, const uint32_t* marks) const {
    const int neurons = (int)job.f.layer.N - slice.neuron;
    auto word = [&](int w) { return marks[w]; };
    for (int w0 = 0; w0 < slice.words; w0 += list_size / 32) {
      const int most = neurons - 32 * w0 < list_size ? neurons - 32 * w0 : list_size;
      const int all = 32 * (slice.words - w0) < most ? 32 * (slice.words - w0) : most;
      const int n = marks ? list_neurons(word, w0, slice.words, group.lane(), list) : all;
      for (int e = rows_of_product * group.warp(); e < n; e += rows_of_product * group.warps()) {
        // entries beyond n are not used
        const Quad<uint16_t> low = quad_at(list + e), high = quad_at(list + e + 4);
        int rows[rows_of_product];
#pragma unroll
        for (int i = 0; i < rows_of_product; i++) {
          const int row = marks ? (i < 4 ? low[i] : high[i - 4]) : 32 * w0 + e + i;
          // beyond n: the first row again
          rows[i] = i == 0 || e + i < n ? row : rows[0];
        }
        rows_product(length, t, rows, n - e);
      }
    }
    group.sync();
  }
  __device__ __forceinline__ Quad<T> product_of(int c, const Cell& cell, unsigned of_use) const {
    Quad<T> q{};
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < cell.live && (of_use >> i & 1)) q[i] = dz[column(c) + i];
    return q;
  }

  __device__ __forceinline__ void item(int64_t b) {
    const Layer& l = job.f.layer;
    const int length = job.p.length(l, b);
    turn = turn % (unsigned)job.shape.slots + (unsigned)length;
    Cell cell[C];
    QuadAdjoint<T> d[C];
#pragma unroll
    for (int c = 0; c < C; c++) {
      cell[c] = cell_of(slice, l, b, column(c));
      d[c] = last_adjoint(job, spec, cell[c]);
    }
    // First steps of the segment and of the chunk; t < 0: past spikes of the first state.
    int S0 = length, t0 = S0;
    for (int t = length - 1; t >= (job.f.gfirst.z ? -(int)l.D : 0); t--) {
      if (t >= 0 && t < t0) {
        if (t < S0) replay_segments(cell, S0 = int(t / segment * segment), t + 1);
        replay_chunks(cell, t0 = int(t / chunk * chunk), t + 1);
      }
      step_back(cell, d, length, t, t - t0);
    }
#pragma unroll
    for (int c = 0; c < C; c++) store_first_gradients(job, cell[c], d[c]);
  }

  __device__ __forceinline__ void replay_segments(const Cell (&cell)[C], int S0, int S1) const {
#pragma unroll
    for (int c = 0; c < C; c++)
      if (cell[c].live) replay_segment(job, spec, cell[c], replayed, column(c), S0, S1);
  }
  __device__ __forceinline__ void replay_chunks(const Cell (&cell)[C], int t0, int t1) const {
#pragma unroll
    for (int c = 0; c < C; c++) {
      const int word = column(c) / 32;
      replay_chunk(job, spec, cell[c], replayed, column(c), int(t0 % segment / chunk), t0, t1,
                   [&](int step, unsigned bits) {
                     const uint32_t marks = gather_word(bits, group.lane());
                     if (group.lane() % 8 == 0 && word < slice.words)
                       active[step * slice.words + word] = marks;
                   });
    }
    group.sync();
  }

  // step: index in the chunk. t < 0: only past spikes.
  __device__ __forceinline__ void step_back(const Cell (&cell)[C], QuadAdjoint<T> (&d)[C],
                                            int length, int t, int step) const {
    const bool some = reaches(job, spec, length, t, first_delay), choosing = choose && t >= 0;
    const uint32_t* marks = active + step * slice.words;
    QuadRecord<T> record[C];
#pragma unroll
    for (int c = 0; c < C; c++)
      if (t >= 0) record[c] = recorded(job, spec, cell[c], replayed, column(c), t, step);
    if (some) product(length, t, choosing ? marks : nullptr);
#pragma unroll
    for (int c = 0; c < C; c++) {
      const Quad<T> p = product_of(c, cell[c],
                                   !some      ? 0
                                   : choosing ? marked(marks, c, cell[c])
                                              : 15);
      if (!cell[c].live) continue;
      if (t < 0) store_first_z_gradient(job, cell[c], length, -1 - t, d[c], p);
      else {
        const Quad<T> dc_quad = adjoint_quad(job, spec, cell[c], length, t, record[c], p, d[c]);
        if (job.f.layer.S) gradients.publish(dc_of(t), cell[c], dc_quad);
      }
    }
    if (job.f.layer.S == 0) return;  // no thread reads dL/dc of others
    if (t < 0) group.sync();  // dz has been read
    else gradients.end_step(group);
  }
};

template <class T, class Spec, class Gradients, int C, bool rows_in_shared>
__global__ void __launch_bounds__(most_threads_backward(rows_in_shared), 1)
    backward_kernel(BackwardSequence<T> job) {
  const uint32_t flags = *job.p.flags;
  if (wrong_kernel<Spec>(job.both, flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads);
  const Slice slice(l.N, shape.ranks, shape.ranks > 1 ? (int)cluster_rank() : 0),
      largest(l.N, shape.ranks, 0);
  const int NP = (int)padded(l.N);
  Arena arena(shared_memory());
  const BackwardShared<T> shared(arena, l, shape, rows_in_shared);
  const T* w = job.p.w + (int64_t)slice.neuron * NP;
  int w_rows = (int)l.N;
  if (rows_in_shared) {
    const int rows = slice.neuron + slice.width < l.N ? slice.width : (int)l.N - slice.neuron;
    for (int d = 0; d < l.S; d++)
      copy_weights(shared.w + (int64_t)d * slice.width * NP, w + d * l.N * NP, rows * NP);
    w = shared.w;
    w_rows = slice.width;
  }
  // Padding of dL/dc must be finite: its weights are 0.
  for (int i = threadIdx.x; i < shape.groups * shape.slots * NP; i += blockDim.x)
    shared.dc[i] = T(0);
  Gradients gradients(group, shared.mbarriers + 2 * group.id, l, shape);
  __syncthreads();
  if (shape.ranks > 1) cluster_sync();

  const Spec spec = Known<Spec>::spec(l, flags, job.f.want);
  BackwardGroup<T, Spec, Gradients, C, rows_in_shared> backward{
      job,
      spec,
      group,
      slice,
      gradients,
      w,
      w_rows,
      shared.dc + group.id * shape.slots * NP,
      shared.dz + group.id * largest.width,
      shared.active + group.id * chunk * largest.words,
      shared.list + threadIdx.x / 32 * list_size,
      {job.replayed + ((int64_t)blockIdx.x * shape.groups + group.id) * replayed_rows * slice.width,
       slice.width},
      first_delay(job.p, l),
      can_be_inactive(spec)};
  const Share share = Share::mine(shape, group);
  // A block without neurons sends nothing.
  for (int64_t b = share.first; b < l.B && slice.words > 0; b += share.step) backward.item(b);
}

}  // namespace lsnn::cuda
