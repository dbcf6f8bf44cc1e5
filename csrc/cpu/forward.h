// The forward pass of one tile of batch items over the whole sequence, event-driven: (1) adds only the weight rows of the
// neurons that spiked. Included by kernels.cpp once for each instruction set.
#pragma once
#include "rows.h"

namespace lsnn::cpu {
namespace {

template <class T> LSNN_INLINE Coefs<Vec<T>> load_coefficients(const Packed<T>& p, int64_t n) {
  const T* k = p.coefficients + n;
  auto row = [&](int i) { return load(k + i * p.NP); };
  return {row(ALPHA),
          row(KAPPA),
          row(RHO),
          row(Q),
          row(P),
          row(BETA),
          row(ETA),
          row(THETA),
          row(SIGMA),
          row(WIDTH),
          row(R_),
          row(n_coefficients),
          row(n_coefficients + 1)};
}

template <class T> struct ForwardScratch {
  T *v, *a, *i, *r, *z;   // [items,NP] carried state
  T* c;                   // [NP] the sum of (1) of one item
  T *y_out, *z_out;       // [items,N] rows to be streamed out
  uint32_t* bits;         // [D,items,W] spikes of the last D steps, step t in slot t % D
  T* real;                // [D,items,NP] the same as numbers, smooth spikes only
  uint32_t* rows;         // [S * N] offsets of weight rows
  T* weights;             // [S * N] factors of those rows where spikes are real numbers

  ForwardScratch(Arena& m, const Layer& l) {
    const int64_t n = tile_items(l.B), NP = padded(l.N);
    v = m.take<T>(n * NP), a = m.take<T>(n * NP), i = m.take<T>(n * NP), r = m.take<T>(n * NP), z = m.take<T>(n * NP);
    c = m.take<T>(NP);
    y_out = m.take<T>(n * l.N + pad);
    z_out = m.take<T>(n * l.N + pad);
    bits = m.take<uint32_t>(l.D * n * words(l.N));
    real = l.smooth ? m.take<T>(l.D * n * NP) : nullptr;
    rows = m.take<uint32_t>(l.S * l.N + pad);
    weights = m.take<T>(l.S * l.N + pad);
  }
};

// The spikes that reach an item at a step, as weight rows in the order of (1). Where some of them are real numbers (the
// initial state, smooth spikes) `weighted` is set and every row has a factor; a factor of 1 changes no bit of the sum.
template <class T> struct Events {
  bool weighted;
  int64_t n = 0;

  LSNN_MEMBER void add_bits(const ForwardScratch<T>& s, const uint32_t* bits, int64_t W, int64_t first, int64_t NP) {
    const int64_t n0 = n;
    n = set_bits(bits, W, (uint32_t)first, (uint32_t)NP, s.rows, n);
    for (int64_t e = n0; weighted && e < n; e++) s.weights[e] = T(1);
  }
  LSNN_MEMBER void add_real(const ForwardScratch<T>& s, const T* z, int64_t N, int64_t first, int64_t NP) {
    for (int64_t j = 0; j < N; j++)
      if (z[j] != T(0)) {
        s.rows[n] = (uint32_t)(first + j * NP);
        s.weights[n++] = z[j];
      }
  }
};

template <class T, class Model>
LSNN_LOCAL void forward_tile(const ForwardArgs& f, const Packed<T>& p, const Model& model, int64_t tile, void* scratch) {
  constexpr int L = Vec<T>::lanes;
  using V = Vec<T>;
  const Layer& l = f.layer;
  const Tile place(l, tile);
  const int64_t B = l.B, N = l.N, NP = p.NP, W = p.W, D = l.D, many = place.many, b0 = place.b0, items = place.items;
  Arena arena(scratch);
  const ForwardScratch<T> s(arena, l);
  auto first_z = [&](int64_t back, int64_t b) { return (const T*)f.first.z + (back * B + b) * N; };  // z[-1-back]

  place.copy_in(s.v, f.first.v), place.copy_in(s.a, f.first.a), place.copy_in(s.i, f.first.i), place.copy_in(s.r, f.first.r),
      place.copy_in(s.z, f.first.z);

  for (int64_t t = 0; t < l.T; t++) {
    uint32_t* now = s.bits + t % D * many * W;
    if (f.save && t % segment == 0)
      for (int64_t q = 0; q < items; q++) {
        const T* carried[] = {s.v, s.a, s.i, s.r};
        for (int64_t part = 0; part < 4; part++)
          memcpy((T*)f.saved.carry + ((t / segment * 4 + part) * B + b0 + q) * N, carried[part] + q * NP, N * sizeof(T));
      }
    for (int64_t q = 0; q < items; q++) {
      const int64_t b = b0 + q, at = (t * B + b) * N;
      Events<T> events{l.smooth || t < D};
      for (int64_t d = 0; d < l.S; d++) {
        const int64_t past = t - 1 - l.delays[d], w0 = d * N * NP;
        if (past < 0) events.add_real(s, first_z(-1 - past, b), N, w0, NP);
        else if (l.smooth) events.add_real(s, s.real + (past % D * many + q) * NP, N, w0, NP);
        else events.add_bits(s, s.bits + (past % D * many + q) * W, W, w0, NP);
      }
      const T* x = (const T*)f.x + t * f.x_stride_t + b * f.x_stride_b;
      if (t + 1 < l.T)
        for (int64_t n = 0; n < N; n += 64 / (int64_t)sizeof(T)) prefetch(x + f.x_stride_t + n);
      sum_events(p.w, s.rows, events.weighted ? s.weights : nullptr, events.n, x, N, s.c);  // (1)

      uint32_t* bits = now + q * W;
      T *y_out = s.y_out + q * N, *z_out = s.z_out + q * N;
      for (int64_t n = 0; n < N; n += L) {
        const int64_t o = q * NP + n;
        const Coefs<V> k = load_coefficients(p, n);
        Carry<V> carry = {load(s.v + o), load(s.a + o), load(s.i + o), load(s.r + o), load(s.z + o)};
        const Stepped<V> out = step(model, k, load(s.c + n), carry);
        store(s.v + o, carry.v), store(s.a + o, carry.a), store(s.z + o, carry.z);
        if (model.synapse || (t + 1) % segment == 0 || t == l.T - 1) store(s.i + o, carry.i);
        if (model.refractory) store(s.r + o, carry.r);
        put_bits<T>(bits, n, to_bits(out.fired));
        store(y_out + n, out.y), store(z_out + n, carry.z);  // the next row overwrites what stands beyond N
        if (f.trace_v) store_n((T*)f.trace_v + at + n, carry.v, N - n);
        if (f.trace_a) store_n((T*)f.trace_a + at + n, carry.a, N - n);
        if (f.trace_A) store_n((T*)f.trace_A + at + n, out.A, N - n);
      }
      if (N % 32) bits[W - 1] &= (1u << N % 32) - 1;  // padded lanes are no neurons
      if (l.smooth) memcpy(s.real + (t % D * many + q) * NP, s.z + q * NP, NP * sizeof(T));
    }
    const int64_t row = t * B + b0;
    stream_copy((T*)f.z + row * N, s.z_out, items * N);
    if (f.save) {
      stream_copy((T*)f.saved.y + row * N, s.y_out, items * N);
      memcpy(f.saved.bits + row * W, now, items * W * sizeof(uint32_t));
      if (l.smooth) memcpy((T*)f.saved.z + row * N, s.z_out, items * N * sizeof(T));
    }
  }
  stream_end();

  place.copy_out(f.last.v, s.v), place.copy_out(f.last.a, s.a), place.copy_out(f.last.i, s.i), place.copy_out(f.last.r, s.r);
  for (int64_t back = 0; f.last.z && back < D; back++)
    for (int64_t q = 0; q < items; q++) {
      T* z = (T*)f.last.z + (back * B + b0 + q) * N;
      const int64_t t = l.T - 1 - back, slot = (t % D * many + q);
      for (int64_t n = 0; n < N; n++)
        z[n] = t < 0 ? first_z(-1 - t, b0 + q)[n] : l.smooth ? s.real[slot * NP + n] : T(s.bits[slot * W + n / 32] >> n % 32 & 1);
    }
}

}  // namespace
}  // namespace lsnn::cpu
