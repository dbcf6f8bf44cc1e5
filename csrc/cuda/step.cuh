// The design `step`: each step is a product by a library of the caller and one of these kernels,
// with a thread for each quad of an item. It supports any number of neurons and any delays; its
// products are dense, which suits high activity.
#pragma once
#include "replay.cuh"
#include "sequence.cuh"

namespace lsnn::cuda {

// The position of a thread. Quads are padded to full words and threads to full warps, so that eight
// lanes share a word.
struct Point {
  int64_t index;  // of the thread, [B,8 words(N)]
  Cell cell;
  bool real;  // false: padding of the last warp

  LSNN_METHOD static int64_t count(const Layer& l) { return (l.B * 8 * words(l.N) + 31) / 32 * 32; }
  LSNN_DEVICE Point mine(const Layer& l) {
    const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, quads = 8 * words(l.N);
    const bool real = index < l.B * quads;
    return {index, real ? Cell(l, index / quads, index % quads * 4) : Cell(l, 0, l.N), real};
  }
};

// State that a thread carries from step to step: [variables,threads] quads.
template <class T> struct Kept {
  Quad<T>* quads;
  int64_t threads;

  LSNN_METHOD Quad<T>& variable(int p, const Point& at) const {
    return quads[p * threads + at.index];
  }
};

// ----------------------------------------------------------------------------------------- forward
template <class T> struct ForwardStep : ForwardJob<T> {
  Kept<T> state;  // v, a, i, r, z
  T* c;  // [B,N] in: the sums of (1); out: the current of the next step
  int t;  // -1: before the first step
};

template <class T, class Spec> __global__ void __launch_bounds__(256)
    forward_step_kernel(ForwardStep<T> job) {
  const uint32_t flags = *job.p.flags;
  if (wrong_kernel<Spec>(job.both, flags)) return;
  const ForwardArgs& f = job.f;
  const Layer& l = f.layer;
  const Point at = Point::mine(l);
  if (at.index >= job.state.threads) return;  // full warps
  Cell cell = at.cell;
  const int length = job.p.length(l, cell.b);
  const bool ended = job.t >= length;
  if (__all_sync(~0u, ended)) return;
  if (ended) cell.live = 0;  // the warp gathers the spikes of other items
  auto variable = [&](int p) -> Quad<T>& { return job.state.variable(p, at); };
  QuadState<T> s;
  if (job.t < 0) s = first_state(job, cell);
  else {
    s = {variable(0), variable(1), variable(2), variable(3), variable(4)};
    const Quad<T> c = load(job.c + cell.at(l, 0), cell.live);
    const QuadCoefs<T> k(job.p, l, cell);
    const uint32_t word = gather_word(
        forward_quad(job, Known<Spec>::spec(l, flags, 0), k, cell, job.t, cell.at(l, job.t), c, s),
        (int)threadIdx.x % 32);
    if (f.saved.bits && at.real && !ended && at.index % 8 == 0)
      f.saved.bits[job.t * l.B * words(l.N) + at.index / 8] = word;
  }
  variable(0) = s.v;
  variable(1) = s.a;
  variable(2) = s.i;
  variable(3) = s.r;
  variable(4) = s.z;
  if (job.t + 1 < length) {
    const Quad<T> next = load(current_at(job, cell, job.t + 1), cell.live);
    store(job.c + cell.at(l, 0), next, cell.live);
  } else if (!ended) {
    store_last_state(job, cell, length, s);
  }
}

// ---------------------------------------------------------------------------------------- backward
template <class T> struct BackwardStep : BackwardJob<T> {
  Kept<T> adjoint;  // v, a, i, z
  Replayed<T> replayed;  // [replayed_rows,4 threads]
  T* dz;  // [B,N] in: the products; out: zeros
  int t;  // T: before the last step; from -1 on: past spikes of the first state
};

template <class T, class Spec> __global__ void __launch_bounds__(256)
    backward_step_kernel(BackwardStep<T> job) {
  const uint32_t flags = *job.p.flags;
  if (wrong_kernel<Spec>(job.both, flags)) return;
  const Layer& l = job.f.layer;
  const Point at = Point::mine(l);
  if (at.index >= job.adjoint.threads) return;  // full warps
  const Cell& cell = at.cell;
  const int length = job.p.length(l, cell.b);
  const bool starts = job.t == l.T;
  if (!starts && job.t >= length) return;  // the item's last step is later in this pass
  const Spec spec = Known<Spec>::spec(l, flags, job.f.want);
  auto variable = [&](int p) -> Quad<T>& { return job.adjoint.variable(p, at); };
  QuadAdjoint<T> d;
  if (starts) d = last_adjoint(job, spec, cell);
  else {
    d = {variable(0), variable(1), variable(2), variable(3)};
    const Quad<T> product = load(job.dz + cell.at(l, 0), cell.live);
    if (job.t < 0) store_first_z_gradient(job, cell, length, -1 - job.t, d, product);
    else {
      const QuadRecord<T> record = recorded(job, spec, cell, job.replayed, 4 * at.index, job.t,
                                            int(job.t % segment % chunk));
      adjoint_quad(job, spec, cell, length, job.t, record, product, d);
      if (job.t == 0) store_first_gradients(job, cell, d);
    }
  }
  if (starts && length == 0) store_first_gradients(job, cell, d);
  variable(0) = d.v;
  variable(1) = d.a;
  variable(2) = d.i;
  variable(3) = d.z;
  store(job.dz + cell.at(l, 0), Quad<T>{}, cell.live);
}

template <class T> struct ReplaySteps : BackwardJob<T> {
  Replayed<T> replayed;
  int64_t threads;
  int first, last, index;  // index: of the chunk in its segment, or -1: the whole segment
};
template <class T, class Spec> __global__ void __launch_bounds__(256)
    replay_kernel(ReplaySteps<T> job) {
  const uint32_t flags = *job.p.flags;
  if (wrong_kernel<Spec>(job.both, flags)) return;
  const Layer& l = job.f.layer;
  const Point at = Point::mine(l);
  if (at.index >= job.threads) return;  // full warps
  const int length = job.p.length(l, at.cell.b), last = job.last < length ? job.last : length;
  if (job.first >= last) return;
  const Spec spec = Known<Spec>::spec(l, flags, job.f.want);
  const int64_t column = 4 * at.index;
  if (job.index < 0)
    return replay_segment(job, spec, at.cell, job.replayed, column, job.first, last);
  replay_chunk(job, spec, at.cell, job.replayed, column, job.index, job.first, last,
               [](int, unsigned) {});
}

}  // namespace lsnn::cuda
