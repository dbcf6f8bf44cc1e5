// The forward pass of a whole sequence in one launch, event-driven: (1) adds only the weight rows
// of the neurons that spiked.
#pragma once
#include "sequence.cuh"

namespace lsnn::cuda {

template <class T> struct ForwardSequence : ForwardJob<T> { Shape shape; };

// C: quads of a lane. rows_in_shared: the weight rows lie in shared memory.
template <class T, class Spec, int C, bool rows_in_shared> struct ForwardGroup {
  const ForwardSequence<T>& job;
  const Spec spec;
  const Group group;
  const int NP, n_words;
  // [slots,n_words] spikes, step t in slot t % slots. A barrier ends each step. A warp that is one
  // step ahead writes the slot of D + 1 steps before, so D + 1 slots suffice.
  uint32_t* const ring;
  const T* w;      // [S,N,NP]
  uint16_t* list;  // [list_size] of this warp
  const int first_delay;

  __device__ __forceinline__ int column(int c) const {
    return 4 * (group.thread + c * group.threads);
  }
  __device__ __forceinline__ Quad<T> row_quad(const T* rows, int j, int c) const {
    return constant_quad<rows_in_shared>(rows + j * NP + column(c));
  }

  // sum += the rows of the listed neurons
  __device__ __forceinline__ void add_listed(Quad<T> (&sum)[C], const Cell (&cell)[C],
                                             const T* rows, int n) const {
    for (int e = 0; e < n; e += RowBatch<T>::at_once) {
      const Quad<uint16_t> neuron = quad_at(list + e);
#pragma unroll
      for (int c = 0; c < C; c++) {
        if (!cell[c].live) continue;
        RowBatch<T> batch;
        batch.load(n - e, [&](int i) { return row_quad(rows, neuron[i], c); });
        batch.add_to(sum[c], n - e);
      }
    }
  }
  __device__ __forceinline__ void add_events(Quad<T> (&sum)[C], const Cell (&cell)[C],
                                             const T* rows, const uint32_t* words) const {
    const auto word = [&](int i) { return words[i]; };
    for (int w0 = 0; w0 < n_words; w0 += list_size / 32)
      add_listed(sum, cell, rows, list_neurons(word, w0, n_words, group.lane(), list));
  }
  __device__ __forceinline__ void add_real(Quad<T> (&sum)[C], const Cell (&cell)[C], const T* rows,
                                           const T* z) const {
    for_real_spikes(z, (int)job.f.layer.N, group.lane(), [&](int j, T factor) {
#pragma unroll
      for (int c = 0; c < C; c++) {
        if (!cell[c].live) continue;
        const Quad<T> row = row_quad(rows, j, c);
#pragma unroll
        for (int q = 0; q < 4; q++) sum[c][q] = sum[c][q] + factor * row[q];
      }
    });
  }

  __device__ __forceinline__ void item(int64_t b) const {
    const ForwardArgs& f = job.f;
    const Layer& l = f.layer;
    const int slots = job.shape.slots, length = job.p.length(l, b);
    Cell cell[C];
    QuadState<T> s[C];
    Quad<T> next[C];
    const T* x[C];  // of step t
    constexpr bool whole = is_paper<Spec>;
#pragma unroll
    for (int c = 0; c < C; c++) {
      cell[c] = Cell(l, b, column(c));
      s[c] = first_state(job, cell[c]);
      x[c] = current_at(job, cell[c], 0);
      next[c] = length ? load_row<whole>(x[c], cell[c].live) : Quad<T>{};
    }
    const QuadCoefs<T> k(job.p, l, cell[0]);
    // of step t
    uint32_t* bits = f.saved.bits ? f.saved.bits + b * n_words : nullptr;
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
        const T* rows = w + d * l.N * NP;
        if (past < 0) add_real(sum, cell, rows, first_z<T>(f.first, l, past, b));
        else if (l.smooth) add_real(sum, cell, rows, (const T*)f.z + (past * l.B + b) * l.N);
        else {
          int at = slot - 1 - delay;
          if (at < 0) at += slots;
          add_events(sum, cell, rows, ring + at * n_words);
        }
      }
#pragma unroll
      for (int c = 0; c < C; c++) {
        const QuadCoefs<T> reloaded(job.p, l, cell[c]);
        const uint32_t word = gather_word(forward_quad(job, spec, C == 1 ? k : reloaded, cell[c], t,
                                                       row + cell[c].n, sum[c], s[c]),
                                          group.lane());
        const int at = column(c) / 32;
        if (at >= n_words || group.lane() % 8) continue;  // eight lanes have the word
        if (l.S) ring[slot * n_words + at] = word;  // else it is not read
        if (bits) bits[at] = word;
      }
      if (bits) bits += l.B * n_words;
      if (l.S) group.sync();
      slot = slot + 1 == slots ? 0 : slot + 1;
    }
#pragma unroll
    for (int c = 0; c < C; c++) store_last_state(job, cell[c], length, s[c]);
  }
};

template <class T, class Spec, int C, bool rows_in_shared>
__global__ void __launch_bounds__(most_threads_forward, 1) forward_kernel(ForwardSequence<T> job) {
  const uint32_t flags = *job.p.flags;
  if (wrong_kernel<Spec>(job.both, flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads);
  Arena arena(shared_memory());
  const ForwardShared<T> shared(arena, l, shape, rows_in_shared);
  const T* w = job.p.w;
  const int NP = (int)padded(l.N), n_words = (int)words(l.N);
  if (rows_in_shared) {
    copy_weights(shared.w, w, int(l.S * l.N) * NP);
    w = shared.w;
    __syncthreads();
  }

  const ForwardGroup<T, Spec, C, rows_in_shared> forward{
      job,
      Known<Spec>::spec(l, flags, 0),
      group,
      NP,
      n_words,
      shared.ring + group.id * shape.slots * n_words,
      w,
      shared.list + threadIdx.x / 32 * list_size,
      first_delay(job.p, l)};
  const Share share = Share::mine(shape, group);
  for (int64_t b = share.first; b < l.B; b += share.step) forward.item(b);
}

}  // namespace lsnn::cuda
