// One backward step of the four neurons of a quad, common to all designs: replay of the state
// before it, and its adjoint.
#pragma once
#include "neurons.cuh"

namespace lsnn::cuda {

template <class T> struct BackwardJob {
  BackwardArgs f;
  Packed<T> p;
  T* sums;    // [B,n_coefficients,NP] gradients of the coefficients, of each item
  bool both;  // see wrong_kernel
};

// The word of spikes with a quad's bits at step t >= 0, and these bits. Two functions, so that many
// loads can be in flight.
template <class T> LSNN_DEVICE uint32_t word_of(const BackwardJob<T>& job, const Cell& cell,
                                                int64_t t) {
  const Layer& l = job.f.layer;
  return job.f.saved.bits[(t * l.B + cell.b) * words(l.N) + cell.n / 32];
}
LSNN_DEVICE unsigned bits_of(const Cell& cell, uint32_t word) { return word >> cell.n % 32 & 15; }
// The spikes of step t as numbers; bits: for t >= 0.
template <class T> LSNN_DEVICE Quad<T> spikes_at(const BackwardJob<T>& job, const Cell& cell,
                                                 int64_t t, unsigned fired) {
  const Layer& l = job.f.layer;
  if (t < 0) return first_z_quad<T>(job.f.first, l, t, cell);
  if (l.smooth) return load((const T*)job.f.saved.z + cell.at(l, t), cell.live);
  return {{T(fired & 1), T(fired >> 1 & 1), T(fired >> 2 & 1), T(fired >> 3)}};
}
template <class T> LSNN_DEVICE Quad<T> spikes_at(const BackwardJob<T>& job, const Cell& cell,
                                                 int64_t t) {
  return spikes_at(job, cell, t, t < 0 ? 0 : bits_of(cell, word_of(job, cell, t)));
}
template <bool whole, class T> LSNN_DEVICE Quad<T> saved_y(const BackwardJob<T>& job,
                                                           const Cell& cell, int64_t t) {
  const int64_t at = cell.at(job.f.layer, t);
  if (job.f.saved.y_is_bf16)
    return widen<T>(load_row<whole>((const bfloat16*)job.f.saved.y + at, cell.live));
  return load_row<whole>((const T*)job.f.saved.y + at, cell.live);
}
template <class T> LSNN_DEVICE void prefetch_y(const BackwardJob<T>& job, const Cell& cell,
                                               int64_t t) {
  const int64_t at = cell.at(job.f.layer, t);
  prefetch_global_l2(job.f.saved.y_is_bf16 ? (const void*)((const bfloat16*)job.f.saved.y + at)
                                           : (const T*)job.f.saved.y + at);
}
// t % segment == 0
template <class T> LSNN_DEVICE QuadState<T> saved_state(const BackwardJob<T>& job, const Cell& cell,
                                                        int64_t t) {
  const Layer& l = job.f.layer;
  const T* carry = (const T*)job.f.saved.carry + t / segment * 4 * l.B * l.N;
  auto variable = [&](int p) { return load(carry + cell.at(l, p), cell.live); };
  return {variable(0), variable(1), variable(2), variable(3), spikes_at(job, cell, t - 1)};
}

// ------------------------------------------------------------------------------------------ replay
// Values of a step saved by the forward pass.
template <class T> struct QuadSaved {
  Quad<T> y;
  uint32_t word;  // with the bits of its spikes
};

// Replays a step. Returns the bits of the active neurons.
template <class T, class Spec>
LSNN_DEVICE unsigned replay_quad(const BackwardJob<T>& job, const Spec& spec, const QuadCoefs<T>& k,
                                 const Cell& cell, int64_t t, const QuadSaved<T>& saved,
                                 QuadState<T>& s) {
  const unsigned fired = bits_of(cell, saved.word);
  const Quad<T> z = spikes_at(job, cell, t, fired);
  unsigned active = 0;
#pragma unroll(unrolled<Spec>)
  for (int q = 0; q < 4; q++) {
    Carry<T> carry = s.of(q);
    const bool blocked =
        replay(spec, k.of(q), saved.y.pick(q), z.pick(q), bool(fired >> q & 1), carry);
    s.set(q, carry);
    if (!blocked && q < cell.live) active |= 1u << q;
  }
  return active;
}

// Replays steps [first, last) from the state s; calls before(t, s) and after(t, bits of active
// neurons) for each. Several steps are loaded together to hide the latency of memory.
template <class Spec> inline constexpr int steps_at_once = is_paper<Spec> ? 4 : 1;
template <class T, class Spec, class Before, class After>
LSNN_DEVICE void replay_steps(const BackwardJob<T>& job, const Spec& spec, const Cell& cell,
                              int first, int last, QuadState<T>& s, const Before& before,
                              const After& after) {
  const QuadCoefs<T> k(job.p, job.f.layer, cell);
  constexpr int at_once = steps_at_once<Spec>;
  for (int t0 = first; t0 < last; t0 += at_once) {
    QuadSaved<T> saved[at_once] = {};
#pragma unroll
    for (int i = 0; i < at_once; i++)
      if (t0 + i < last)
        saved[i] = {saved_y<is_paper<Spec>>(job, cell, t0 + i), word_of(job, cell, t0 + i)};
#pragma unroll
    for (int i = 0; i < at_once; i++)
      if (t0 + i < last) {
        before(t0 + i, s);
        after(t0 + i, replay_quad(job, spec, k, cell, t0 + i, saved[i], s));
      }
  }
}

// States before steps, by thread: rows [0, segment / chunk) before the first step of each chunk,
// then before each step of a chunk.
inline constexpr int first_step_row = segment / chunk;
inline constexpr int64_t replayed_rows = (first_step_row + chunk) * 4;
template <class T> struct Replayed {
  T* rows;  // [replayed_rows,width]
  int64_t width;

  template <class Spec> __device__ __forceinline__ void keep(const Spec& spec, const Cell& cell,
                                                             int64_t column, int row,
                                                             const QuadState<T>& s) const {
    if (!cell.live) return;
    T* to = rows + row * 4 * width + column;
    store_whole(to, s.v);
    store_whole(to + width, s.a);
    if (spec.want >> SIGMA & 1) store_whole(to + 2 * width, s.i);
    if (spec.refractory) store_whole(to + 3 * width, s.r);
  }
  // z is unchanged.
  template <class Spec> __device__ __forceinline__ void recall(const Spec& spec, const Cell& cell,
                                                               int64_t column, int row,
                                                               QuadState<T>& s) const {
    if (!cell.live) return;
    const T* from = rows + row * 4 * width + column;
    s.v = quad_at(from);
    s.a = quad_at(from + width);
    if (spec.want >> SIGMA & 1) s.i = quad_at(from + 2 * width);
    if (spec.refractory) s.r = quad_at(from + 3 * width);
  }
};

// Saves the state before the first step of each chunk of the segment [S0, S1).
template <class T, class Spec>
LSNN_DEVICE void replay_segment(const BackwardJob<T>& job, const Spec& spec, const Cell& cell,
                                const Replayed<T>& replayed, int64_t column, int S0, int S1) {
  QuadState<T> s = saved_state(job, cell, S0);
  auto keep = [&](int t, const QuadState<T>& read) {
    if ((t - S0) % chunk == 0) replayed.keep(spec, cell, column, int((t - S0) / chunk), read);
  };
  replay_steps(job, spec, cell, S0, S1, s, keep, [](int, unsigned) {});
}
// Saves the state before each step of the chunk [t0, t1), and calls mark(t - t0, bits of the active
// neurons).
template <class T, class Spec, class Mark>
LSNN_DEVICE void replay_chunk(const BackwardJob<T>& job, const Spec& spec, const Cell& cell,
                              const Replayed<T>& replayed, int64_t column, int index, int t0,
                              int t1, const Mark& mark) {
  QuadState<T> s{};
  replayed.recall(spec, cell, column, index, s);
  s.z = spikes_at(job, cell, t0 - 1);
  auto keep = [&](int t, const QuadState<T>& read) {
    replayed.keep(spec, cell, column, first_step_row + t - t0, read);
  };
  replay_steps(job, spec, cell, t0, t1, s, keep, [&](int t, unsigned bits) { mark(t - t0, bits); });
}
// The largest multiple of `of` below n, or less than 0.
LSNN_INLINE int last_multiple(int64_t n, int64_t of) { return n > 0 ? int((n - 1) / of * of) : -1; }

// ----------------------------------------------------------------------------------------- adjoint
template <class T> LSNN_DEVICE const T* outside_z_at(const BackwardJob<T>& job, const Cell& cell,
                                                     int64_t t) {
  const BackwardArgs& f = job.f;
  return (const T*)f.gz + t * f.gz_stride_t + cell.b * f.gz_stride_b + cell.n * f.gz_stride_n;
}
template <bool whole, class T> LSNN_DEVICE Quad<T> outside_z(const BackwardJob<T>& job,
                                                             const Cell& cell, int64_t t) {
  if (!job.f.gz) return {};
  const T* g = outside_z_at(job, cell, t);
  if constexpr (whole) return load_row<whole>(g, cell.live);
  return job.f.gz_stride_n ? load(g, cell.live) : Quad<T>::all(*g);
}
template <class T> LSNN_DEVICE Quad<T> outside(const BackwardJob<T>& job, const void* g,
                                               const Cell& cell, int64_t t) {
  return g ? load((const T*)g + cell.at(job.f.layer, t), cell.live) : Quad<T>{};
}
// dL/dz of the last state for the spikes of step t, which may be negative. length: steps of the
// item.
template <class T>
LSNN_DEVICE Quad<T> last_state_z(const BackwardJob<T>& job, const Cell& cell, int length,
                                 int64_t t) {
  const Layer& l = job.f.layer;
  const int64_t steps_back = length - 1 - t;
  return job.f.glast.z && steps_back < l.D
             ? load((const T*)job.f.glast.z + cell.at(l, steps_back), cell.live)
             : Quad<T>{};
}

// Global memory that the adjoint of step t reads, loaded while the product is computed.
template <class T> struct QuadRecord {
  Quad<T> y, gz;
  QuadState<T> before;           // without z
  uint32_t word, word_before;    // with the bits of the spikes of steps t and t - 1
};
template <class T, class Spec>
LSNN_DEVICE QuadRecord<T> recorded(const BackwardJob<T>& job, const Spec& spec, const Cell& cell,
                                   const Replayed<T>& replayed, int64_t column, int t, int step) {
  constexpr bool whole = is_paper<Spec>;
  QuadRecord<T> record{saved_y<whole>(job, cell, t),
                       outside_z<whole>(job, cell, t),
                       {},
                       word_of(job, cell, t),
                       t ? word_of(job, cell, t - 1) : 0};
  replayed.recall(spec, cell, column, first_step_row + step, record.before);
  // Prefetches into the L2 cache for the replay of the segment before and for the next steps.
  if (t >= segment && cell.live) prefetch_y(job, cell, t - segment);
  if (t >= 8 && cell.live && job.f.gz) prefetch_global_l2(outside_z_at(job, cell, t - 8));
  return record;
}

// Whether step t, which may be negative, receives dL/dz through (1).
template <class T, class Spec>
LSNN_DEVICE bool reaches(const BackwardJob<T>& job, const Spec& spec, int length, int t,
                         int first_delay) {
  const Layer& l = job.f.layer;
  return l.S && !(spec.model.detach & detach_rec) && t + l.D >= 0 && t + 1 + first_delay < length;
}

// dL/d of the last state. Clears the gradients of the coefficients.
template <class T, class Spec> LSNN_DEVICE QuadAdjoint<T> last_adjoint(const BackwardJob<T>& job,
                                                                       const Spec& spec,
                                                                       const Cell& cell) {
  const Layer& l = job.f.layer;
  const State& s = job.f.glast;
  for (int c = 0; spec.want && c < n_coefficients && cell.live; c++)
    store(job.sums + (cell.b * n_coefficients + c) * padded(l.N) + cell.n, Quad<T>{}, 4);
  return {
      load_state<T>(s.v, l, cell), load_state<T>(s.a, l, cell), load_state<T>(s.i, l, cell), {}};
}

// product: W dL/dc, dL/dz of step t through (1). Writes gx and returns it.
template <class T, class Spec>
LSNN_DEVICE Quad<T> adjoint_quad(const BackwardJob<T>& job, const Spec& spec, const Cell& cell,
                                 int length, int64_t t, const QuadRecord<T>& record,
                                 const Quad<T>& product, QuadAdjoint<T>& d) {
  const BackwardArgs& f = job.f;
  const Layer& l = f.layer;
  const QuadCoefs<T> k(job.p, l, cell);
  constexpr bool whole = is_paper<Spec>;  // no traces
  const Quad<T> gv = outside<T>(job, whole ? nullptr : f.gv, cell, t),
                ga = outside<T>(job, whole ? nullptr : f.ga, cell, t),
                gA = outside<T>(job, whole ? nullptr : f.gA, cell, t),
                last_z = last_state_z(job, cell, length, t),
                z = spikes_at(job, cell, t, bits_of(cell, record.word));
  QuadState<T> before = record.before;
  before.z = spikes_at(job, cell, t - 1, bits_of(cell, record.word_before));
  Quad<T> dc;
#pragma unroll(unrolled<Spec>)
  for (int q = 0; q < 4; q++) {
    Adjoint<T> of{d.v.pick(q) + gv.pick(q), d.a.pick(q) + ga.pick(q), d.i.pick(q),
                  d.z.pick(q) + last_z.pick(q) + product.pick(q) + record.gz.pick(q)};
    Coefs<T> g = {};
    dc.put(q, step_adjoint(spec, k.of(q), before.of(q), record.y.pick(q), z.pick(q), gA.pick(q), of,
                           g));
    d.v.put(q, of.v);
    d.a.put(q, of.a);
    d.i.put(q, of.i);
    d.z.put(q, of.z);
    const T sums[] = {g.alpha, g.kappa, g.rho,   g.q,     g.p, g.beta,
                      g.eta,   g.theta, g.sigma, g.width, g.R};
#pragma unroll
    for (int c = 0; c < n_coefficients; c++)
      if ((spec.want >> c & 1) && q < cell.live)
        job.sums[(cell.b * n_coefficients + c) * padded(l.N) + cell.n + q] += sums[c];
  }
  store_row<whole>((T*)f.gx + cell.at(l, t), dc, cell.live);
  return dc;
}

template <class T> LSNN_DEVICE void store_first_gradients(const BackwardJob<T>& job,
                                                          const Cell& cell,
                                                          const QuadAdjoint<T>& d) {
  const Layer& l = job.f.layer;
  const State& first = job.f.gfirst;
  store_state(first.v, l, cell, d.v);
  store_state(first.a, l, cell, d.a);
  store_state(first.i, l, cell, d.i);
}
// dL/d of the spikes `steps_back` + 1 steps before the sequence; the newest also have the local
// part of step 0 in d.
template <class T>
LSNN_DEVICE void store_first_z_gradient(const BackwardJob<T>& job, const Cell& cell, int length,
                                        int steps_back, const QuadAdjoint<T>& d,
                                        const Quad<T>& product) {
  const Layer& l = job.f.layer;
  Quad<T> z = last_state_z(job, cell, length, -1 - steps_back);
#pragma unroll
  for (int q = 0; q < 4; q++) z[q] = (steps_back ? T(0) : d.z[q]) + z[q] + product[q];
  store((T*)job.f.gfirst.z + cell.at(l, steps_back), z, cell.live);
}

}  // namespace lsnn::cuda
