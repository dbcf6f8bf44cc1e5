// The forward pass of a whole sequence in one launch, event-driven: (1) adds only the weight rows
// of the neurons that spiked.
#pragma once
#include "sequence.cuh"

namespace lsnn::cuda {

// Spikes of the last steps as words [slots,words(N)], step t in slot t % slots.
//
// In one block: a barrier ends each step. A warp that is one step ahead writes the slot of D + 1
// steps before, so D + 1 slots suffice.
struct BlockSpikes {
  using Word = uint32_t;
  static constexpr bool idle_warps_wait = true;  // at the barrier
  Word* ring;
  int n_words;

  // The words of a step; called by full warps.
  struct Step {
    const uint32_t* words;
    __device__ __forceinline__ uint32_t operator()(int w) const { return words[w]; }
  };

  __device__ __forceinline__ void begin_item() const {}
  __device__ __forceinline__ Step wait(int slot, uint32_t, int) const {
    return {ring + slot * n_words};
  }
  // Eight lanes hold the word; lane: 0 to 7 of them.
  __device__ __forceinline__ void publish(int slot, int w, uint32_t word, uint32_t, int lane,
                                          int) const {
    if (lane == 0) ring[slot * n_words + w] = word;
  }
  __device__ __forceinline__ void end_step(const Group& group) const { group.sync(); }
};

// Across a cluster: each word is stored into every block together with the number of its step, as
// one 64-bit value, and readers poll for the number. No barrier: a warp that writes step t has read
// all words of step t - 1 - d, d the smallest delay. Hence every warp has finished that step and
// reads nothing older than t - d - D, so D + d + 1 slots suffice.
struct ClusterSpikes {
  using Word = uint64_t;
  // warps that send nothing would fall behind the ring
  static constexpr bool idle_warps_wait = false;
  Word* ring;
  int n_words;

  // Lane w keeps words w and w + 32 from the load that matched their numbers: only halves of a
  // single load belong to the same store.
  struct Step {
    uint32_t kept[most_polled_words / 32];
    __device__ __forceinline__ uint32_t operator()(int w) const {
      return __shfl_sync(~0u, w < 32 ? kept[0] : kept[1], w % 32);
    }
  };

  // all warps have finished the item before
  __device__ __forceinline__ void begin_item() const { cluster_sync(); }
  __device__ __forceinline__ uint32_t poll(int slot, uint32_t number, int w) const {
    uint64_t x = 0;
    unsigned polls = 0;
    while (w < n_words &&
           (uint32_t)((x = ld_relaxed_cluster_shared_cta(ring + slot * n_words + w)) >> 32) !=
               number)
      poll_again(polls);
    return (uint32_t)x;
  }
  __device__ __forceinline__ Step wait(int slot, uint32_t number, int lane) const {
    Step step{{poll(slot, number, lane), 0}};
    if (n_words > 32) step.kept[1] = poll(slot, number, lane + 32);
    return step;
  }
  __device__ __forceinline__ void publish(int slot, int w, uint32_t word, uint32_t number, int lane,
                                          int ranks) const {
    for (int r = lane; r < ranks; r += 8)
      st_relaxed_cluster(peer(ring + slot * n_words + w, r), (uint64_t)number << 32 | word);
  }
  __device__ __forceinline__ void end_step(const Group&) const {}
};

template <class T> struct ForwardSequence : ForwardJob<T> { Shape shape; };

// C: quads of a lane. rows_in_shared: the weight rows lie in shared memory.
template <class T, class W, class Spec, class Spikes, int C,
          bool rows_in_shared> struct ForwardGroup {
  const ForwardSequence<T>& job;
  const Spec spec;
  const Group group;
  const Slice slice;
  const Spikes spikes;
  const W* w;      // [S,N,width]
  uint16_t* list;  // [list_size] of this warp
  const int first_delay;

  __device__ __forceinline__ int column(int c) const {
    return 4 * (group.thread + c * group.threads);
  }
  __device__ __forceinline__ Quad<W> row_quad(const W* rows, int j, int c) const {
    return constant_quad<rows_in_shared>(rows + j * slice.width + column(c));
  }

  // sum += the rows of the listed neurons
  __device__ __forceinline__ void add_listed(Quad<T> (&sum)[C], const Cell (&cell)[C],
                                             const W* rows, int n) const {
    for (int e = 0; e < n; e += RowBatch<W>::at_once) {
      const Quad<uint16_t> neuron = quad_at(list + e);
#pragma unroll
      for (int c = 0; c < C; c++) {
        if (!cell[c].live) continue;
        RowBatch<W> batch;
        batch.load(n - e, [&](int i) { return row_quad(rows, neuron[i], c); });
        batch.add_to(sum[c], n - e);
      }
    }
  }
  __device__ __forceinline__ void add_events(Quad<T> (&sum)[C], const Cell (&cell)[C],
                                             const W* rows,
                                             const typename Spikes::Step& words) const {
    for (int w0 = 0; w0 < spikes.n_words; w0 += list_size / 32)
      add_listed(sum, cell, rows, list_neurons(words, w0, spikes.n_words, group.lane(), list));
  }
  __device__ __forceinline__ void add_real(Quad<T> (&sum)[C], const Cell (&cell)[C], const W* rows,
                                           const T* z) const {
    for_real_spikes(z, (int)job.f.layer.N, group.lane(), [&](int j, T factor) {
#pragma unroll
      for (int c = 0; c < C; c++) {
        if (!cell[c].live) continue;
        const Quad<W> row = row_quad(rows, j, c);
#pragma unroll
        for (int q = 0; q < 4; q++) sum[c][q] = sum[c][q] + factor * T(row[q]);
      }
    });
  }

  // n0: number of the item's first step; numbers continue over the items of the group.
  __device__ __forceinline__ void item(int64_t b, uint32_t n0) const {
    const ForwardArgs& f = job.f;
    const Layer& l = f.layer;
    if (!Spikes::idle_warps_wait && 128 * group.warp() >= 32 * slice.words) return;
    const int slots = job.shape.slots, length = job.p.length(l, b);
    Cell cell[C];
    QuadState<T> s[C];
    Quad<T> next[C];
    const T* x[C];  // of step t
    constexpr bool whole = is_paper<Spec>;
#pragma unroll
    for (int c = 0; c < C; c++) {
      cell[c] = cell_of(slice, l, b, column(c));
      s[c] = first_state(job, cell[c]);
      x[c] = current_at(job, cell[c], 0);
      next[c] = length ? load_row<whole>(x[c], cell[c].live) : Quad<T>{};
    }
    const QuadCoefs<T> k(job.p, l, cell[0]);
    // of step t
    uint32_t* bits = f.save ? f.saved.bits + b * spikes.n_words + slice.word : nullptr;
    int64_t row = b * l.N;  // of step t in arrays [T,B,N]
    int slot = 0;  // of step t
    for (int t = 0; t < length; t++, row += l.B * l.N) {
      Quad<T> sum[C];
#pragma unroll
      for (int c = 0; c < C; c++) {
        sum[c] = next[c];
        x[c] += f.x_stride_t;
        if (t + 1 < length) next[c] = load_row<whole>(x[c], cell[c].live);
        if (t + 8 < length && cell[c].live) prefetch_global_l2(x[c] + 7 * f.x_stride_t);
      }
      for (int d = 0; d < l.S; d++) {  // (1)
        // the first delay needs no load
        const int delay = d ? job.p.delays[d] : first_delay, past = t - 1 - delay;
        const W* rows = w + d * l.N * slice.width;
        if (past < 0) add_real(sum, cell, rows, first_z<T>(f.first, l, past, b));
        else if (l.smooth) add_real(sum, cell, rows, (const T*)f.z + (past * l.B + b) * l.N);
        else {
          int at = slot - 1 - delay;
          if (at < 0) at += slots;
          add_events(sum, cell, rows, spikes.wait(at, n0 + (uint32_t)past + 1, group.lane()));
        }
      }
#pragma unroll
      for (int c = 0; c < C; c++) {
        const QuadCoefs<T> reloaded(job.p, l, cell[c]);
        const uint32_t word = gather_word(forward_quad(job, spec, C == 1 ? k : reloaded, cell[c], t,
                                                       row + cell[c].n, sum[c], s[c]),
                                          group.lane());
        const int at = column(c) / 32;
        if (at >= slice.words) continue;
        if (l.S)  // else they are not read
          spikes.publish(slot, slice.word + at, word, n0 + (uint32_t)t + 1, group.lane() % 8,
                         job.shape.ranks);
        if (bits && group.lane() % 8 == 0) bits[at] = word;
      }
      if (bits) bits += l.B * spikes.n_words;
      if (l.S) spikes.end_step(group);
      slot = slot + 1 == slots ? 0 : slot + 1;
    }
#pragma unroll
    for (int c = 0; c < C; c++) store_last_state(job, cell[c], length, s[c]);
  }
};

template <class T, class W, class Spec, class Spikes, int C, bool rows_in_shared>
__global__ void __launch_bounds__(most_threads_forward, 1) forward_kernel(ForwardSequence<T> job) {
  const uint32_t flags = *job.p.flags;
  if (wrong_kernel<Spec>(job.both, flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads);
  const Slice slice(l.N, shape.ranks, shape.ranks > 1 ? (int)cluster_rank() : 0);
  Arena arena(shared_memory());
  const ForwardShared<W, typename Spikes::Word> shared(arena, l, shape, rows_in_shared);
  const W* w = (const W*)job.p.w;
  const int n_words = (int)words(l.N), ring = shape.slots * n_words;
  if (rows_in_shared) {
    copy_columns(shared.w, w, int(l.S * l.N), (int)padded(l.N), slice.neuron, slice.width);
    w = shared.w;
  }
  // 0 is not the number of a step
  for (int i = threadIdx.x; i < shape.groups * ring; i += blockDim.x) shared.ring[i] = 0;
  __syncthreads();

  Spikes spikes{shared.ring + group.id * ring, n_words};
  const ForwardGroup<T, W, Spec, Spikes, C, rows_in_shared> forward{
      job,
      Known<Spec>::spec(l, flags, 0),
      group,
      slice,
      spikes,
      w,
      shared.list + threadIdx.x / 32 * list_size,
      first_delay(job.p, l)};
  const Share share = Share::mine(shape, group);
  uint32_t n0 = 0;
  // All groups of a cluster run the same number of iterations, as these have cluster barriers.
  for (int64_t first = share.first - group.id; first < l.B;
       first += share.step, n0 += (uint32_t)l.T) {
    spikes.begin_item();
    if (first + group.id < l.B) forward.item(first + group.id, n0);
  }
  if (shape.ranks > 1) cluster_sync();  // no block exits before all stores into it
}

}  // namespace lsnn::cuda
