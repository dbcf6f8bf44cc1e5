// The leaky readout of a tile, p_t = k p_{t-1} + (1 - k) w z_t, and its adjoint; at the end the
// integrator without the product.
#pragma once
#include "../alif_math.h"
#include "events.h"
#include "product_dense.h"

namespace lsnn::cpu {
namespace {

template <class T> struct ReadoutScratch {
  int64_t OP;            // padded_outputs(O)
  T* p;                  // [items,OP] carried p; dL/dp in the backward pass
  T* sum;                // [OP] w z of one item
  T* zero;               // [OP]
  T* weights;            // [N] nonzero smooth spikes
  uint32_t* rows;        // [N] offsets of weight rows
  T* g;                  // [chunk,items,OP] dL/d(w z) of the steps of the chunk
  RowGradient<T, false> gradient;  // the spikes of the chunk, into gw_out

  ReadoutScratch(Arena& m, const Layer& l, const Readout& readout, bool backward)
      : OP(padded_outputs(readout.O)),
        gradient(m, backward && OP ? l.N : 0, backward && OP ? chunk * tile_items(l.B) * l.N : 0) {
    const int64_t n = tile_items(l.B), N = OP ? l.N : 0;
    p = m.take<T>(n * OP);
    sum = m.take<T>(OP);
    zero = m.take<T>(OP);
    weights = m.take<T>(N);
    rows = m.take<uint32_t>(N + pad);
    g = m.take<T>(backward ? chunk * n * OP : 0);
  }
};

template <class T> struct ReadoutTile : Tile {
  static constexpr int L = Vec<T>::lanes;
  using V = Vec<T>;
  const Readout& f;
  const Packed<T>& packed;
  ReadoutScratch<T>& s;
  const int64_t O, OP;
  const Leak<V> leak;

  LSNN_METHOD ReadoutTile(const Layer& l, const Readout& readout, const Packed<T>& p,
                          ReadoutScratch<T>& scratch, int64_t tile, const Member& member)
      : Tile(l, tile, member),
        f(readout),
        packed(p),
        s(scratch),
        O(readout.O),
        OP(scratch.OP),
        leak(Leak<V>::of(readout.k, T())) {}

  // Numbers [B,O] of the caller into s.p; zeros where `from` is null.
  LSNN_METHOD void start(const void* from) const {
    memset(s.p, 0, items * OP * sizeof(T));
    memset(s.zero, 0, OP * sizeof(T));
    if (!from) return;
    for (int64_t b = 0; b < items; b++)
      memcpy(s.p + b * OP, (const T*)from + (b0 + b) * O, O * sizeof(T));
  }

  // --------------------------------------------------------------------------------------- forward
  // p of item b after step t. past: spikes as for Steps::collect.
  template <class Past> LSNN_METHOD void step(int64_t t, int64_t b, const Past& past,
                                              bool smooth) const {
    int64_t n = 0;
    if (smooth) {
      const T* z = past.real(t, b);
      for (int64_t j = 0; j < N; j++)
        if (z[j] != T(0)) {
          s.rows[n] = (uint32_t)(j * OP);
          s.weights[n++] = z[j];
        }
    } else {
      each_member_bits(
          past, t, b, [&](const uint32_t* bits, int64_t n_words, int64_t first) LSNN_LAMBDA {
            n = set_bits(bits, n_words, (uint32_t)(first * OP), (uint32_t)OP, s.rows, n);
          });
    }
    sum_events(packed.w_out, s.rows, smooth ? s.weights : nullptr, n, s.zero, O, s.sum);
    for (int64_t o = 0; o < OP; o += L)
      store(s.p + b * OP + o, integrate(leak, load(s.p + b * OP + o), load(s.sum + o)));
  }
  // item b; row: of [..,B,O], of the tile's first item
  LSNN_METHOD void write(void* p, int64_t row, int64_t b) const {
    if (p) memcpy((T*)p + (row + b) * O, s.p + b * OP, O * sizeof(T));
  }

  // -------------------------------------------------------------------------------------- backward
  // dL/dp of step t, later steps included; dz += w^T dL/d(w z). step: index of t in the chunk.
  // Every member computes these short sums for all items.
  LSNN_METHOD void adjoint(const void* gp, int64_t t, int64_t step, T* dz,
                           int64_t dz_stride) const {
    T* g = s.g + step * full_items * OP;
    const int64_t alive = items_alive(t);
    for (int64_t b = 0; b < alive; b++) {
      T* carried = s.p + b * OP;
      const T* gp_row = (const T*)gp + (t * B + b0 + b) * O;
      if (gp)
        for (int64_t o = 0; o < O; o++) carried[o] += gp_row[o];
      for (int64_t o = 0; o < OP; o += L) {
        V of_p = load(carried + o);
        store(g + b * OP + o, integrate_adjoint(leak, of_p));
        store(carried + o, of_p);
      }
    }
    add_product(packed.panels_out + n0 * O, O, n_end - n0, g, OP, dz + n0, dz_stride, alive);
  }
  LSNN_METHOD const T* g(int64_t step, int64_t b) const {
    return s.g + (step * full_items + b) * OP;
  }
};

// Columns [c0, c1) of LeakyForward, and of LeakyBackward. The row written last holds the carried
// values.
template <class T> LSNN_LOCAL void leaky_forward_columns(const LeakyForward& f, int64_t c0,
                                                         int64_t c1) {
  const Leak<T> leak = Leak<T>::of(f.k, T());
  T* carried = (T*)f.last;
  for (int64_t c = c0; c < c1; c++) carried[c] = f.first ? ((const T*)f.first)[c] : T(0);
  for (int64_t t = 0; t < f.T; t++) {
    const T* x = (const T*)f.x + t * f.n;
    T* p = (T*)f.p + t * f.n;
    for (int64_t c = c0; c < c1; c++) p[c] = carried[c] = integrate(leak, carried[c], x[c]);
  }
}
template <class T> LSNN_LOCAL void leaky_backward_columns(const LeakyBackward& f, int64_t c0,
                                                          int64_t c1) {
  const Leak<T> leak = Leak<T>::of(f.k, T());
  T* carried = (T*)f.gp_first;
  for (int64_t c = c0; c < c1; c++) carried[c] = ((const T*)f.gp_last)[c];
  for (int64_t t = f.T - 1; t >= 0; t--) {
    const T* gp = (const T*)f.gp + t * f.n;
    T* gx = (T*)f.gx + t * f.n;
    for (int64_t c = c0; c < c1; c++) {
      T of_p = carried[c] + gp[c];
      gx[c] = integrate_adjoint(leak, of_p);
      carried[c] = of_p;
    }
  }
}

}  // namespace
}  // namespace lsnn::cpu
