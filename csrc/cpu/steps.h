// A step of a tile: the events that reach each item, their sum (1), and step() of alif_math.h, for the neurons of one member.
// The forward pass runs it, and so does the backward pass where it computes again what was not saved.
#pragma once
#include "rows.h"
#include "sparse.h"

namespace lsnn::cpu {
namespace {

// Of lanes [n, n + lanes); coefficients: those of Packed.
template <class T> LSNN_INLINE Coefs<Vec<T>> load_coefficients(const T* coefficients, int64_t n) {
  const T* k = coefficients + n * (n_coefficients + 2);
  auto row = [&](int i) LSNN_LAMBDA { return load(k + i * Vec<T>::lanes); };
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

template <class T> struct StepScratch {
  T *v, *a, *i, *r;       // [items,NP] carried state
  T* z;                   // [items,NP] z', where it is a real number: in the first step, and where spikes are smooth
  T* c;                   // [NP] the sum of (1) of one item
  int64_t capacity;       // events that an item can have in a step
  uint32_t* rows;         // [items,capacity] offsets of weight rows, or their numbers where only synapses that are not zero are added
  T* weights;             // [items,capacity] factors of those rows, for items with a factor that is not 1
  uint32_t* nonzero;      // [items,words(I) + 1] inputs that are not zero

  StepScratch(Arena& own, const Layer& l, const Projection& in) : capacity(in.I + l.S * l.N + pad) {
    const int64_t n = tile_items(l.B), NP = padded(l.N);
    v = own.take<T>(n * NP), a = own.take<T>(n * NP), i = own.take<T>(n * NP), r = own.take<T>(n * NP), z = own.take<T>(n * NP);
    c = own.take<T>(NP);
    rows = own.take<uint32_t>(n * capacity), weights = own.take<T>(n * capacity);
    nonzero = own.take<uint32_t>(n * (words(in.I) + 1));
  }
};

// x: [T,B,N], or [T,B,I] of a projection that has no bits.
template <class T, class Model> struct Steps : Tile {
  static constexpr int L = Vec<T>::lanes;
  using V = Vec<T>;
  const Layer& l;
  const Packed<T>& p;
  const Model& model;
  const StepScratch<T>& s;
  const T* x;
  int64_t x_stride_t, x_stride_b, I;
  const uint32_t* x_bits;    // [T,B,words(I)] or null
  const int64_t row;         // what a row counts for in a list: NP numbers, or 1
  const T* z0;               // [D,B,N] spikes before the first step, newest first
  int64_t n[max_items];      // events of each item in the step at hand
  int64_t n_inputs[max_items];  // how many of them, the first, are inputs
  bool weighted[max_items];  // whether they have factors
  int64_t input_rows;        // of these events, those of inputs
  mutable Meter meter;

  LSNN_MEMBER Steps(const Layer& layer, const Packed<T>& packed, const Model& m, const StepScratch<T>& scratch, int64_t tile,
                    const Member& member, const void* x, int64_t x_stride_t, int64_t x_stride_b, const Projection& in, const void* z0)
      : Tile(layer, tile, member),
        l(layer),
        p(packed),
        model(m),
        s(scratch),
        x((const T*)x),
        x_stride_t(x_stride_t),
        x_stride_b(x_stride_b),
        I(in.I),
        x_bits(in.bits),
        row(packed.sum_sparse ? 1 : NP),
        z0((const T*)z0),
        meter(packed.hooks) {}

  LSNN_MEMBER const T* first_z(int64_t past, int64_t q) const { return z0 + ((-1 - past) * B + b0 + q) * N; }  // past < 0
  LSNN_MEMBER const T* x_row(int64_t t, int64_t q) const { return x + t * x_stride_t + (b0 + q) * x_stride_b; }

  // The inputs of item q that are not zero, a bit each, once collect() has found them.
  LSNN_MEMBER const uint32_t* input_bits(int64_t t, int64_t q) const {
    return x_bits ? x_bits + (t * B + b0 + q) * words(I) : s.nonzero + q * (words(I) + 1);
  }

  LSNN_MEMBER void add_bits(int64_t q, const uint32_t* bits, int64_t n_words, int64_t first) {
    const int64_t before = n[q];
    n[q] = set_bits(bits, n_words, (uint32_t)(first * row), (uint32_t)row, s.rows + q * s.capacity, before);
    for (int64_t e = before; weighted[q] && e < n[q]; e++) s.weights[q * s.capacity + e] = T(1);
  }
  LSNN_MEMBER void add_real(int64_t q, const T* z, int64_t first) {
    for (int64_t j = 0; j < N; j++)
      if (z[j] != T(0)) {
        s.rows[q * s.capacity + n[q]] = (uint32_t)((first + j) * row);
        s.weights[q * s.capacity + n[q]++] = z[j];
      }
  }
  // The inputs come first; their weight rows lie behind those of the recurrence.
  LSNN_MEMBER void add_inputs(int64_t t, int64_t q) {
    const uint32_t* nonzero = input_bits(t, q);
    const T* x = x_bits ? nullptr : x_row(t, q);
    uint32_t* rows = s.rows + q * s.capacity;
    const int64_t first = l.S * N;
    if (!weighted[q]) {
      n[q] = set_bits(nonzero, words(I), (uint32_t)(first * NP), (uint32_t)NP, rows, 0);
      return;
    }
    n[q] = set_bits(nonzero, words(I), 0, 1, rows, 0);
    for (int64_t e = 0; e < n[q]; e++) {
      s.weights[q * s.capacity + e] = x ? x[rows[e]] : T(1);
      rows[e] = (uint32_t)((first + rows[e]) * NP);
    }
  }

  // The events of step t, of all items before any is summed, and the words of bits of all items before any is unpacked: what
  // is read at once in another width waits for its stores. Past spikes come as past.bits(t, q, part) [W], in as many parts as
  // there are members or in one, or, where they are smooth, as past.real(t, q) [N].
  template <class Past> LSNN_MEMBER void collect(int64_t t, const Past& past) {
    input_rows = 0;
    const int64_t alive = items_alive(t);
    for (int64_t q = 0; q < alive; q++) {
      weighted[q] = l.smooth || t < l.D;
      if (!I || x_bits) continue;
      if (t + 1 < l.T)
        for (int64_t i = 0; i < I; i += 64 / (int64_t)sizeof(T)) prefetch(x_row(t + 1, q) + i);
      weighted[q] |= !nonzero(x_row(t, q), I, s.nonzero + q * (words(I) + 1));
    }
    for (int64_t q = 0; q < alive; q++) {
      n[q] = 0;
      if (I) add_inputs(t, q);
      n_inputs[q] = n[q];
      input_rows += n_inputs[q];
      for (int64_t d = 0; d < l.S; d++) {
        const int64_t then = t - 1 - l.delays[d], first = d * N;
        if (then < 0) add_real(q, first_z(then, q), first);
        else if (l.smooth) add_real(q, past.real(then, q), first);
        else
          each_part(past, then, q,
                    [&](const uint32_t* bits, int64_t n_words, int64_t n) LSNN_LAMBDA { add_bits(q, bits, n_words, first + n); });
      }
    }
  }

  // Item q at step t: (1) to (9). before: bits of z', or null where it stands in s.z. keep_i: whether i is asked for after it
  // though no later step reads it. Calls out(n, stepped, carry) for the lanes from each n on.
  template <class Out> LSNN_MEMBER void advance(int64_t t, int64_t q, const uint32_t* before, bool keep_i, const Out& out) const {
    const T* start = I ? p.bias : x_row(t, q);
    if (!I && t + 1 < l.T)
      for (int64_t n = n0; n < n1; n += 64 / (int64_t)sizeof(T)) prefetch(start + x_stride_t + n);
    const int64_t list = q * s.capacity;
    const uint32_t* rows = s.rows + list;
    const T* weights = weighted[q] ? s.weights + list : nullptr;
    const int64_t whole = p.sum_sparse ? n_inputs[q] : n[q];
    sum_events(p.w + n0, rows, weights, whole, start + n0, n1 - n0, s.c + n0);  // (1)
    if (p.sum_sparse) add_sparse_events(p.sparse, N, rows + whole, weights ? weights + whole : nullptr, n[q] - whole, s.c, n0, n1);
    meter.split_item(0);
    // Locals, as every store through a pointer might change a member.
    const Model model = this->model;
    const bool smooth = l.smooth, write_i = model.synapse || keep_i;
    T *v = s.v + q * NP, *a = s.a + q * NP, *i = s.i + q * NP, *r = s.r + q * NP, *z = s.z + q * NP;
    const T *c = s.c, *coefficients = p.coefficients;
    for (int64_t n = n0, end = n1; n < end; n += L) {
      const Coefs<V> k = load_coefficients(coefficients, n);
      Carry<V> carry = {load(v + n), load(a + n), model.synapse ? load(i + n) : V(0), model.refractory ? load(r + n) : V(0),
                        before ? select(get_bits<T>(before, n), V(1), V(0)) : load(z + n)};
      const Stepped<V> stepped = step(model, k, load(c + n), carry);
      store(v + n, carry.v), store(a + n, carry.a);
      if (write_i) store(i + n, carry.i);
      if (model.refractory) store(r + n, carry.r);
      if (smooth) store(z + n, carry.z);
      out(n, stepped, carry);
    }
  }
};

}  // namespace
}  // namespace lsnn::cpu
