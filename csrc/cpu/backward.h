// The backward pass (BPTT) of one tile of batch items. Included by kernels.cpp once for each instruction set.
//
// Chunk by chunk from the end: the chunk's carried state is replayed from the last saved one; step by step the product with
// the weights and the adjoint of step() give dL/dc; then the chunk's spikes, sorted by neuron, sum dL/dc into the weight
// gradient, each row in registers.
#pragma once
#include "forward.h"
#include "product.h"

namespace lsnn::cpu {
namespace {

template <class T> struct BackwardScratch {
  T *v, *a, *i, *r;            // [chunk + 1,items,NP] what each step of the chunk read (a prime in alif.h)
  T* parts;                    // [segment / chunk,4,items,NP] the same at the start of each chunk of the segment
  T* gc;                       // [chunk + D,items,NP] dL/dc, step t in slot t % (chunk + D)
  T *dv, *da, *di;             // [items,NP] dL/d of the carried state
  T* dz;                       // [items,NP] dL/d of the spikes of the step at hand
  T* gx_out;                   // [items,N] a row to be streamed out
  uint16_t* active;            // [chunk,NP/16,max_items] neurons whose dL/dz is of use, a bit each
  int64_t* active_n;           // [chunk] how many
  T* sums;                     // [n_coefficients,NP] gradients of the coefficients over the chunk: short sums round less
  RowGradient<T, false> gradient;  // the spikes of the chunk, into gw

  BackwardScratch(Arena& m, const Layer& l) : gradient(m, l.S * l.N, chunk * tile_items(l.B) * l.S * l.N) {
    const int64_t n = tile_items(l.B), NP = padded(l.N);
    const int64_t rows = (chunk + 1) * n * NP;
    v = m.take<T>(rows), a = m.take<T>(rows), i = m.take<T>(rows), r = m.take<T>(rows);
    parts = m.take<T>(segment / chunk * 4 * n * NP);
    gc = m.take<T>((chunk + l.D) * n * NP);
    dv = m.take<T>(n * NP), da = m.take<T>(n * NP), di = m.take<T>(n * NP), dz = m.take<T>(n * NP);
    gx_out = m.take<T>(n * l.N + pad);
    active = m.take<uint16_t>(chunk * NP / 16 * max_items);
    active_n = m.take<int64_t>(chunk);
    sums = m.take<T>(n_coefficients * NP);
  }
};

template <class T, class Model> struct BackwardTile : Tile {
  static constexpr int L = Vec<T>::lanes;
  using V = Vec<T>;
  const BackwardArgs& f;
  const Packed<T>& p;
  const Model& model;
  BackwardScratch<T>& s;
  const Layer& l;
  const int64_t W, ring;
  const bool choose;  // whether there can be neurons whose dL/dz is of no use

  LSNN_MEMBER BackwardTile(const BackwardArgs& args, const Packed<T>& packed, const Model& m, BackwardScratch<T>& scratch, int64_t tile)
      : Tile(args.layer, tile),
        f(args),
        p(packed),
        model(m),
        s(scratch),
        l(args.layer),
        W(p.W),
        ring(chunk + l.D),
        choose(has_bounded_support(m.surrogate) || m.refractory) {}

  LSNN_MEMBER T* gc(int64_t t) const { return s.gc + t % ring * many * NP; }
  LSNN_MEMBER const T* first_z(int64_t past, int64_t q) const { return (const T*)f.first.z + ((-1 - past) * B + b0 + q) * N; }
  LSNN_MEMBER const uint32_t* bits(int64_t t, int64_t q) const { return f.saved.bits + (t * B + b0 + q) * W; }
  LSNN_MEMBER int64_t left(int64_t n) const { return N - n; }

  // z_t of lanes [n, n + L) as numbers.
  LSNN_MEMBER V spikes(int64_t t, int64_t q, int64_t n) const {
    if (t < 0) return load_n(first_z(t, q) + n, left(n));
    if (l.smooth) return load_n((const T*)f.saved.z + (t * B + b0 + q) * N + n, left(n));
    return select(get_bits<T>(bits(t, q), n), V(1), V(0));
  }

  // Replays [t0, t1) from `from` [4,items,NP]; keeps what each step read, or only what the first of each chunk did.
  template <bool parts> void replay_steps(const T* from, int64_t t0, int64_t t1) const {
    const int64_t part = many * NP;
    const bool carry_i = model.want >> SIGMA & 1, carry_r = model.refractory;
    if (!parts) memset(s.active, 0, chunk * NP / 16 * max_items * sizeof(uint16_t)), memset(s.active_n, 0, chunk * sizeof(int64_t));
    T* carried[] = {s.v, s.a, s.i, s.r};
    const bool carry[] = {true, true, carry_i, carry_r};
    for (int c = 0; c < 4; c++)
      if (carry[c]) memcpy(carried[c], from + c * part, part * sizeof(T));
    for (int64_t t = t0; t < t1; t++) {
      const int64_t step = parts ? 0 : t - t0, next = parts ? 0 : step + 1;
      for (int c = 0; parts && (t - t0) % chunk == 0 && c < 4; c++)
        if (carry[c]) memcpy(s.parts + ((t - t0) / chunk * 4 + c) * part, carried[c], part * sizeof(T));
      for (int64_t q = 0; q < items; q++) {
        const T* y_row = (const T*)f.saved.y + (t * B + b0 + q) * N;
        if (t + 1 < t1)
          for (int64_t n = 0; n < N; n += 64 / (int64_t)sizeof(T)) prefetch(y_row + B * N + n);
        for (int64_t n = 0; n < N; n += L) {
          const Coefs<V> k = load_coefficients(p, n);
          const int64_t o = step * part + q * NP + n, to = next * part + q * NP + n;
          Carry<V> c = {load(s.v + o), load(s.a + o), carry_i ? load(s.i + o) : V(0), carry_r ? load(s.r + o) : V(0), spikes(t - 1, q, n)};
          const VecMask<T> blocked = replay(model, k, load_n(y_row + n, left(n)), spikes(t, q, n), get_bits<T>(bits(t, q), n), c);
          if (!parts && choose) mark(step, q, n, ~to_bits(blocked) & ((1u << (left(n) < L ? left(n) : L)) - 1));
          store(s.v + to, c.v), store(s.a + to, c.a);
          if (carry_i) store(s.i + to, c.i);
          if (carry_r) store(s.r + to, c.r);
        }
      }
    }
  }

  LSNN_MEMBER void mark(int64_t step, int64_t q, int64_t n, unsigned lanes) const {
    s.active[(step * NP / 16 + n / 16) * max_items + q] |= (uint16_t)(lanes << n % 16);
    s.active_n[step] += __builtin_popcount(lanes);
  }

  // dz += sum over delays of W dL/dc of the steps that the spikes of step t reached through (1); `step` is its place in the
  // chunk. Where few of the results are of use only those are computed; step -1: all of them.
  void product(int64_t t, int64_t step) const {
    if (model.row.stop & stop_rec) return;
    const bool few = choose && step >= 0 && (double)s.active_n[step] < active_limit(items) * (double)(items * N);
    for (int64_t d = 0; d < l.S; d++) {
      const int64_t reached = t + 1 + l.delays[d];
      if (reached < 0 || reached >= l.T) continue;
      if (few) add_active_product(p.w + d * N * NP, N, NP, gc(reached), s.dz, s.active + step * NP / 16 * max_items);
      else add_product(p.panels + d * NP * N, N, NP, gc(reached), s.dz, items);
    }
  }

  LSNN_MEMBER V outside(const void* g, int64_t t, int64_t q, int64_t n) const {  // a contiguous gradient [T,B,N]
    return g ? load_n((const T*)g + (t * B + b0 + q) * N + n, left(n)) : V(0);
  }
  LSNN_MEMBER V outside_z(int64_t t, int64_t q, int64_t n) const {
    const T* g = (const T*)f.gz + t * f.gz_stride_t + (b0 + q) * f.gz_stride_b;
    return f.gz_stride_n ? load_n(g + n, left(n)) : V(*g);
  }

  // The adjoint of one step for all items; dz holds all that reached the spikes of step t but what comes from outside.
  void adjoint(int64_t t, int64_t t0, T* gk) const {
    T* out = gc(t);
    for (int64_t q = 0; q < items; q++) {
      if (f.gz && t > 0)
        for (int64_t n = 0; n < N; n += 64 / (int64_t)sizeof(T))
          prefetch((const T*)f.gz + (t - 1) * f.gz_stride_t + (b0 + q) * f.gz_stride_b + n * f.gz_stride_n);
      for (int64_t n = 0; n < N; n += L) {
        const int64_t o = q * NP + n, at = (t - t0) * many * NP + o;
        const Coefs<V> k = load_coefficients(p, n);
        const bool carry_i = model.want >> SIGMA & 1;
        const Carry<V> before = {load(s.v + at), load(s.a + at), carry_i ? load(s.i + at) : V(0), model.refractory ? load(s.r + at) : V(0),
                                 spikes(t - 1, q, n)};
        const V y = load_n((const T*)f.saved.y + (t * B + b0 + q) * N + n, left(n));
        Adjoint<V> d = {load(s.dv + o), load(s.da + o), model.synapse || t == l.T - 1 ? load(s.di + o) : V(0), load(s.dz + o)};
        if (f.gz) d.z = d.z + outside_z(t, q, n);
        if (f.gv) d.v = d.v + outside(f.gv, t, q, n);
        if (f.ga) d.a = d.a + outside(f.ga, t, q, n);
        Coefs<V> g = {};
        const V dc = step_adjoint(model, k, before, y, spikes(t, q, n), outside(f.gA, t, q, n), d, g);
        store(s.dv + o, d.v), store(s.da + o, d.a), store(s.dz + o, d.z);
        if (model.synapse || t == 0) store(s.di + o, d.i);
        store(out + o, dc), store(s.gx_out + q * N + n, dc);
        const V sums[] = {g.alpha, g.kappa, g.rho, g.q, g.p, g.beta, g.eta, g.theta, g.sigma, g.width, g.R};
        for (int c = 0; model.want && c < n_coefficients; c++)
          if (model.want >> c & 1) store(gk + c * NP + n, load(gk + c * NP + n) + sums[c]);
      }
    }
    stream_copy((T*)f.gx + (t * B + b0) * N, s.gx_out, items * N);
  }

  // gw += z[t - 1 - d] dL/dc[t] over the chunk.
  void weight_gradient(int64_t t0, int64_t t1, T* gw) const {
    s.gradient.clear();
    for (int64_t t = t0; t < t1; t++)
      for (int64_t d = 0; d < l.S; d++)
        for (int64_t q = 0, past = t - 1 - l.delays[d]; q < items; q++) {
          const T* dc = gc(t) + q * NP;
          if (past >= 0 && !l.smooth) {
            s.gradient.add_bits(bits(past, q), W, d * N, dc - s.gc);
            continue;
          }
          const T* z = past < 0 ? first_z(past, q) : (const T*)f.saved.z + (past * B + b0 + q) * N;
          for (int64_t j = 0; j < N; j++)
            if (z[j] != T(0)) add_row(gw + (d * N + j) * NP, z[j], dc, NP);
        }
    s.gradient.add_to(gw, s.gc, NP);
  }

  // dz += dL/dz of the last state that belongs to the spikes of step t, which may lie before the sequence.
  LSNN_MEMBER void add_last_state(int64_t t) const {
    const int64_t back = l.T - 1 - t;
    for (int64_t q = 0; f.glast.z && back < l.D && q < items; q++)
      for (int64_t n = 0; n < N; n++) s.dz[q * NP + n] += ((const T*)f.glast.z)[(back * B + b0 + q) * N + n];
  }

  void run(T* gw, T* gk) const {
    const int64_t part = many * NP;
    copy_in(s.dv, f.glast.v), copy_in(s.da, f.glast.a), copy_in(s.di, f.glast.i), copy_in(s.dz, nullptr);
    for (int64_t S0 = (l.T - 1) / segment * segment; l.T && S0 >= 0; S0 -= segment) {
      const int64_t S1 = S0 + segment < l.T ? S0 + segment : l.T;
      T* start = s.parts;  // [4,items,NP]; the replay puts the same numbers there
      for (int64_t c = 0; c < 4; c++) copy_in(start + c * part, (const T*)f.saved.carry + (S0 / segment * 4 + c) * B * N);
      replay_steps<true>(start, S0, S1);
      for (int64_t t0 = S0 + (S1 - S0 - 1) / chunk * chunk; t0 >= S0; t0 -= chunk) {
        const int64_t t1 = t0 + chunk < S1 ? t0 + chunk : S1;
        replay_steps<false>(s.parts + (t0 - S0) / chunk * 4 * part, t0, t1);
        if (gk) memset(s.sums, 0, n_coefficients * NP * sizeof(T));
        for (int64_t t = t1 - 1; t >= t0; t--) {
          add_last_state(t);
          product(t, t - t0);
          adjoint(t, t0, s.sums);
        }
        for (int64_t c = 0; gk && c < n_coefficients * NP; c++) gk[c] += s.sums[c];
        if (gw) weight_gradient(t0, t1, gw);
      }
    }
    stream_end();
    copy_out(f.gfirst.v, s.dv), copy_out(f.gfirst.a, s.da), copy_out(f.gfirst.i, s.di);
    for (int64_t back = 0; f.gfirst.z && back < l.D; back++) {
      if (back) copy_in(s.dz, nullptr);  // the first one starts from the local part that step 0 left
      add_last_state(-1 - back);
      product(-1 - back, -1);
      copy_out((T*)f.gfirst.z + back * B * N, s.dz);
    }
  }
};

template <class T, class Model>
LSNN_LOCAL void backward_tile(const BackwardArgs& f, const Packed<T>& p, const Model& model, int64_t tile, void* scratch, T* gw, T* gk) {
  Arena arena(scratch);
  BackwardScratch<T> s(arena, f.layer);
  BackwardTile<T, Model>(f, p, model, s, tile).run(gw, gk);
}

}  // namespace
}  // namespace lsnn::cpu
