// One step of the four neurons of a quad, common to all designs, by step(), replay() and
// step_adjoint().
#pragma once
#include "layout.cuh"

namespace lsnn::cuda {

// The position of a quad: neurons [n, n + live) of item b. Lanes without neurons have live = 0 and
// only skip loads and stores.
struct Cell {
  int64_t b;
  int n, live;

  Cell() = default;
  LSNN_METHOD Cell(const Layer& l, int64_t item, int64_t first) : b(item), n((int)first), live(0) {
    if (first < l.N) live = (int)(l.N - first < 4 ? l.N - first : 4);
    else n = 0;
  }
  // Index of its first number in row t of an array [T,B,N].
  LSNN_METHOD int64_t at(const Layer& l, int64_t t) const { return (t * l.B + b) * l.N + n; }
};

template <class T> struct QuadState {
  Quad<T> v, a, i, r, z;  // Carry of alif_math.h

  LSNN_METHOD Carry<T> of(int q) const {
    return {v.pick(q), a.pick(q), i.pick(q), r.pick(q), z.pick(q)};
  }
  LSNN_METHOD void set(int q, const Carry<T>& c) {
    v.put(q, c.v);
    a.put(q, c.a);
    i.put(q, c.i);
    r.put(q, c.r);
    z.put(q, c.z);
  }
};
template <class T> struct QuadAdjoint { Quad<T> v, a, i, z; };

template <class T> struct QuadCoefs {
  Quad<T> k[n_coefficients];
  T dampening, n_ref, cutoff;

  LSNN_METHOD QuadCoefs(const Packed<T>& p, const Layer& l, const Cell& cell)
      : dampening(T(l.dampening)),
        n_ref(T(l.n_ref)),
        cutoff(T(l.cutoff)) {
    const int64_t NP = padded(l.N);
#pragma unroll
    for (int c = 0; c < n_coefficients; c++) k[c] = quad_at(p.k + c * NP + cell.n);
  }
  LSNN_METHOD Coefs<T> of(int q) const {
    return {k[ALPHA].pick(q),
            k[KAPPA].pick(q),
            k[RHO].pick(q),
            k[Q].pick(q),
            k[P].pick(q),
            k[BETA].pick(q),
            k[ETA].pick(q),
            k[THETA].pick(q),
            k[SIGMA].pick(q),
            k[WIDTH].pick(q),
            k[R_].pick(q),
            dampening,
            n_ref,
            cutoff,
            reciprocal_(k[KAPPA].pick(q)),
            reciprocal_(k[WIDTH].pick(q))};
  }
};

// Unroll factor of the loop over the four neurons: the general kernel is too long to unroll.
template <class Spec> inline constexpr int unrolled = is_paper<Spec> ? 4 : 1;

// [B,N], or null: zeros
template <class T> LSNN_DEVICE Quad<T> load_state(const void* p, const Layer& l, const Cell& cell) {
  return p ? load((const T*)p + cell.at(l, 0), cell.live) : Quad<T>{};
}
template <class T> LSNN_DEVICE void store_state(void* p, const Layer& l, const Cell& cell,
                                                const Quad<T>& q) {
  if (p) store((T*)p + cell.at(l, 0), q, cell.live);
}

// Past spikes before the sequence, z[t] with t < 0: [N] numbers of item b, or null: zeros.
template <class T> LSNN_DEVICE const T* first_z(const State& first, const Layer& l, int64_t t,
                                                int64_t b) {
  return first.z ? (const T*)first.z + ((-1 - t) * l.B + b) * l.N : nullptr;
}
template <class T> LSNN_DEVICE Quad<T> first_z_quad(const State& first, const Layer& l, int64_t t,
                                                    const Cell& cell) {
  const T* z = first_z<T>(first, l, t, cell.b);
  return z ? load(z + cell.n, cell.live) : Quad<T>{};
}

// ----------------------------------------------------------------------------------------- forward
template <class T> struct ForwardJob {
  ForwardArgs f;
  Packed<T> p;
  bool both;  // see wrong_kernel
};

template <class T> LSNN_DEVICE QuadState<T> first_state(const ForwardJob<T>& job,
                                                        const Cell& cell) {
  const Layer& l = job.f.layer;
  const State& s = job.f.first;
  return {load_state<T>(s.v, l, cell), load_state<T>(s.a, l, cell), load_state<T>(s.i, l, cell),
          load_state<T>(s.r, l, cell), load_state<T>(s.z, l, cell)};
}

// The spikes of a step, from the numbers or the bits.
template <class T> LSNN_DEVICE Quad<T> written_z(const ForwardJob<T>& job, const Cell& cell,
                                                 int64_t t) {
  const Layer& l = job.f.layer;
  if (job.f.z) return load((const T*)job.f.z + cell.at(l, t), cell.live);
  if (!cell.live) return {};
  const uint32_t word =
      job.f.saved.bits[(t * l.B + cell.b) * words(l.N) + cell.n / 32] >> cell.n % 32;
  return {{T(word & 1), T(word >> 1 & 1), T(word >> 2 & 1), T(word >> 3 & 1)}};
}

// length: steps of the item.
template <class T>
LSNN_DEVICE void store_last_state(const ForwardJob<T>& job, const Cell& cell, int length,
                                  const QuadState<T>& s) {
  const Layer& l = job.f.layer;
  const State& last = job.f.last;
  store_state(last.v, l, cell, s.v);
  store_state(last.a, l, cell, s.a);
  store_state(last.i, l, cell, s.i);
  store_state(last.r, l, cell, s.r);
  if (last.z && !job.f.z) __syncwarp();  // other lanes have stored the words
  for (int64_t steps_back = 0; last.z && steps_back < l.D; steps_back++) {
    const int64_t t = length - 1 - steps_back;
    const Quad<T> z = t < 0 ? first_z_quad<T>(job.f.first, l, t, cell) : written_z(job, cell, t);
    store((T*)last.z + cell.at(l, steps_back), z, cell.live);
  }
}

template <class T> LSNN_DEVICE const T* current_at(const ForwardJob<T>& job, const Cell& cell,
                                                   int64_t t) {
  return (const T*)job.f.x + t * job.f.x_stride_t + cell.b * job.f.x_stride_b + cell.n;
}

// Stores the state before step t, if a segment begins with t.
template <class T> LSNN_DEVICE void store_carry(const ForwardJob<T>& job, const Cell& cell,
                                                int64_t t, const QuadState<T>& s) {
  const Layer& l = job.f.layer;
  T* carry = (T*)job.f.saved.carry + t / segment * 4 * l.B * l.N;
  const Quad<T>* variables[] = {&s.v, &s.a, &s.i, &s.r};
#pragma unroll
  for (int variable = 0; variable < 4; variable++)
    store(carry + cell.at(l, variable), *variables[variable], cell.live);
}
// whole: rows consist of full quads.
template <bool whole, class T> LSNN_DEVICE void store_y(void* to, bool is_bf16, int64_t at,
                                                        const Quad<T>& y, int live) {
  if (is_bf16) store_row<whole>((bfloat16*)to + at, widen<bfloat16>(y), live);
  else store_row<whole>((T*)to + at, y, live);
}

// c: the sums of (1). at: cell.at(l, t). Writes all outputs of the step except the spike bits,
// which it returns.
template <class T, class Spec>
LSNN_DEVICE unsigned forward_quad(const ForwardJob<T>& job, const Spec& spec, const QuadCoefs<T>& k,
                                  const Cell& cell, int64_t t, int64_t at, const Quad<T>& c,
                                  QuadState<T>& s) {
  constexpr bool whole = is_paper<Spec>;
  const ForwardArgs& f = job.f;
  const Layer& l = f.layer;
  if (f.save && t % segment == 0) store_carry(job, cell, t, s);
  Quad<T> y, A;
  unsigned fired = 0;
#pragma unroll(unrolled<Spec>)
  for (int q = 0; q < 4; q++) {
    Carry<T> carry = s.of(q);
    const Stepped<T> out = step(spec, k.of(q), c.pick(q), carry);
    s.set(q, carry);
    y.put(q, out.y);
    A.put(q, out.A);
    if (out.fired && q < cell.live) fired |= 1u << q;
  }
  store_row<whole>((T*)f.z + at, s.z, f.z ? cell.live : 0);
  if (f.save) store_y<whole>(f.saved.y, f.saved.y_is_bf16, at, y, cell.live);
  if constexpr (whole) return fired;
  if (f.save && l.smooth) store((T*)f.saved.z + at, s.z, cell.live);
  if (f.trace_v) store((T*)f.trace_v + at, s.v, cell.live);
  if (f.trace_a) store((T*)f.trace_a + at, s.a, cell.live);
  if (f.trace_A) store((T*)f.trace_A + at, A, cell.live);
  return fired;
}

// The word of 32 spikes from four bits of each of eight adjacent lanes. All lanes of the warp must
// call it.
LSNN_DEVICE uint32_t gather_word(unsigned four_bits, int lane) {
  uint32_t word = four_bits << 4 * (lane % 8);
#pragma unroll
  for (int o = 1; o < 8; o *= 2) word |= __shfl_xor_sync(~0u, word, o);
  return word;
}

}  // namespace lsnn::cuda
