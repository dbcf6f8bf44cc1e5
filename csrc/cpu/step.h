// A step of a tile: the events that reach each item, their sum (1), and the step of its neurons,
// for those of one member. The forward pass runs it, and so does the backward pass where it
// computes again what was not saved.
#pragma once
#include "events.h"
#include "model_kernels.h"
#include "product_sparse.h"

namespace lsnn::cpu {
namespace {

template <class T> struct StepScratch {
  T* states;  // [states,items,NP] carried
  T* z;  // [items,NP] z', where it is a real number: in the first step, and where spikes are smooth
  T* c;  // [currents,NP] the sum of (1) of one item
  int64_t capacity;  // events that an item can have in a step
  // [items,capacity] offsets of weight rows, or their numbers where only synapses that are not zero
  // are added
  uint32_t* rows;
  T* weights;  // [items,capacity] factors of those rows, for items with a factor that is not 1
  uint32_t* nonzero;  // [items,words(I) + 1] inputs that are not zero

  StepScratch(Arena& own, const Layer& l, const Projection& in) : capacity(in.I + l.S * l.N + pad) {
    const int64_t n = tile_items(l.B), NP = padded(l.N);
    states = own.take<T>(l.sizes.states * n * NP);
    z = own.take<T>(n * NP);
    c = own.take<T>(l.sizes.currents * NP);
    rows = own.take<uint32_t>(n * capacity);
    weights = own.take<T>(n * capacity);
    nonzero = own.take<uint32_t>(n * (words(in.I) + 1));
  }
};

// x: [T,B,N], or [T,B,I] of a projection that has no bits.
template <class T> struct Steps : Tile {
  static constexpr int L = Vec<T>::lanes;
  using V = Vec<T>;
  const Layer& l;
  const Packed<T>& p;
  const StepScratch<T>& s;
  neuron::NeuronTable<T> neuron;
  const int64_t K, state_size;  // currents; numbers of one state of the tile
  const T* x;
  int64_t x_stride_t, x_stride_b, I;
  const uint32_t* x_bits;  // [T,B,words(I)] or null
  const int64_t row_stride;  // what a row counts for in a list: NP numbers, or 1
  const T* z0;  // [D,B,N] spikes before the first step, newest first
  int64_t n[max_items];  // events of each item in the step at hand
  int64_t n_inputs[max_items];  // how many of them, the first, are inputs
  bool weighted[max_items];  // whether they have factors
  int64_t input_rows;  // of these events, those of inputs
  mutable Meter meter;

  LSNN_METHOD Steps(const Layer& layer, const Packed<T>& packed, const StepScratch<T>& scratch,
                    int64_t tile, const Member& member, const void* x, int64_t x_stride_t,
                    int64_t x_stride_b, const Projection& in, const void* z0)
      : Tile(layer, tile, member),
        l(layer),
        p(packed),
        s(scratch),
        neuron(layer.neuron ? *(const neuron::NeuronTable<T>*)layer.neuron
                            : model_table<T>(packed.spec, packed.beta_is_zero)),
        K(layer.sizes.currents),
        state_size(full_items * NP),
        x((const T*)x),
        x_stride_t(x_stride_t),
        x_stride_b(x_stride_b),
        I(in.I),
        x_bits(in.bits),
        row_stride(packed.sum_sparse ? 1 : NP),
        z0((const T*)z0),
        meter(packed.hooks) {}

  // What item b carries.
  LSNN_METHOD Rows<T> states(int64_t b) const { return {s.states + b * NP, state_size}; }

  // past < 0
  LSNN_METHOD const T* first_z(int64_t past, int64_t b) const {
    return z0 + ((-1 - past) * B + b0 + b) * N;
  }
  LSNN_METHOD const T* x_row(int64_t t, int64_t b) const {
    return x + t * x_stride_t + (b0 + b) * x_stride_b;
  }

  // The inputs of item b that are not zero, a bit each, once collect() has found them.
  LSNN_METHOD const uint32_t* input_bits(int64_t t, int64_t b) const {
    return x_bits ? x_bits + (t * B + b0 + b) * words(I) : s.nonzero + b * (words(I) + 1);
  }

  LSNN_METHOD void add_bits(int64_t b, const uint32_t* bits, int64_t n_words, int64_t first) {
    const int64_t before = n[b];
    n[b] = set_bits(bits, n_words, (uint32_t)(first * row_stride), (uint32_t)row_stride,
                    s.rows + b * s.capacity, before);
    if (weighted[b])
      for (int64_t e = before; e < n[b]; e++) s.weights[b * s.capacity + e] = T(1);
  }
  LSNN_METHOD void add_real(int64_t b, const T* z, int64_t first) {
    for (int64_t j = 0; j < N; j++)
      if (z[j] != T(0)) {
        s.rows[b * s.capacity + n[b]] = (uint32_t)((first + j) * row_stride);
        s.weights[b * s.capacity + n[b]++] = z[j];
      }
  }
  // The inputs come first; their weight rows lie behind those of the recurrence, where these are.
  LSNN_METHOD void add_inputs(int64_t t, int64_t b) {
    const uint32_t* nonzero = input_bits(t, b);
    const T* x = x_bits ? nullptr : x_row(t, b);
    uint32_t* rows = s.rows + b * s.capacity;
    const int64_t first = p.w ? l.S * N : 0;
    if (!weighted[b]) {
      n[b] = set_bits(nonzero, words(I), (uint32_t)(first * NP), (uint32_t)NP, rows, 0);
      return;
    }
    n[b] = set_bits(nonzero, words(I), 0, 1, rows, 0);
    for (int64_t e = 0; e < n[b]; e++) {
      s.weights[b * s.capacity + e] = x ? x[rows[e]] : T(1);
      rows[e] = (uint32_t)((first + rows[e]) * NP);
    }
  }

  // The events of step t, of all items before any is summed, and the words of bits of all items
  // before any is unpacked: or a load in another width than the stores before it meets
  // store-forwarding stalls. Past spikes come as past.bits(t, b, member) [W], in as many parts as
  // there are members or in one, or, where they are smooth, as past.real(t, b) [N].
  template <class Past> LSNN_METHOD void collect(int64_t t, const Past& past) {
    input_rows = 0;
    const int64_t alive = items_alive(t);
    for (int64_t b = 0; b < alive; b++) {
      weighted[b] = l.smooth || t < l.D;
      if (!I || x_bits) continue;
      if (t + 1 < l.T)
        for (int64_t i = 0; i < I; i += 64 / (int64_t)sizeof(T)) prefetch(x_row(t + 1, b) + i);
      weighted[b] |= !nonzero(x_row(t, b), I, s.nonzero + b * (words(I) + 1));
    }
    for (int64_t b = 0; b < alive; b++) {
      n[b] = 0;
      if (I) add_inputs(t, b);
      n_inputs[b] = n[b];
      input_rows += n_inputs[b];
      for (int64_t d = 0; d < l.S; d++) {
        const int64_t t_past = t - 1 - l.delays[d], first = d * N;
        if (t_past < 0) add_real(b, first_z(t_past, b), first);
        else if (l.smooth) add_real(b, past.real(t_past, b), first);
        else
          each_member_bits(past, t_past, b,
                           [&](const uint32_t* bits, int64_t n_words, int64_t n)
                               LSNN_LAMBDA { add_bits(b, bits, n_words, first + n); });
      }
    }
  }

  // What of a step is written, where not null, as of StepRow.
  struct Written {
    bool is_last;
    uint32_t* bits;
    Rows<T> saved;
    T* z;
    T* const* traces;
  };

  // Item b at step t: (1) to (9). bits of z' are null where z' stands in s.z.
  LSNN_METHOD void advance(int64_t t, int64_t b, const uint32_t* before, const Written& to) const {
    const T* start = I ? p.bias : x_row(t, b);
    if (!I && t + 1 < l.T)
      for (int64_t k = 0; k < K; k++)
        for (int64_t n = n0; n < n1; n += 64 / (int64_t)sizeof(T))
          prefetch(start + x_stride_t + k * N + n);
    const int64_t list = b * s.capacity;
    const uint32_t* rows = s.rows + list;
    const T* weights = weighted[b] ? s.weights + list : nullptr;
    const int64_t whole = p.sum_sparse ? n_inputs[b] : n[b];
    const T* const w = p.w ? p.w : p.w_in;
    for (int64_t k = 0; k < K; k++)
      sum_events(w + k * p.w_stride + n0, rows, weights, whole, start + k * N + n0, n1 - n0,
                 s.c + k * NP + n0);  // (1)
    if (p.sum_sparse)
      add_sparse_events(p.sparse, N, rows + whole, weights ? weights + whole : nullptr,
                        n[b] - whole, s.c, n0, n1);
    meter.split_item(0);
    if (neuron.saves_currents && to.saved.first)
      for (int64_t k = 0; k < K; k++)
        memcpy(to.saved.first + k * to.saved.stride + n0, s.c + k * NP + n0, (n1 - n0) * sizeof(T));
    neuron.step(neuron.settings, {.coefficients = p.coefficients,
                                  .n0 = n0,
                                  .n1 = n1,
                                  .N = N,
                                  .c = {s.c, NP},
                                  .before = {before, before ? nullptr : s.z + b * NP, NP},
                                  .states = states(b),
                                  .is_last = to.is_last,
                                  .z_numbers = s.z + b * NP,
                                  .bits = to.bits,
                                  .saved = to.saved,
                                  .z = to.z,
                                  .traces = to.traces});
  }
};

}  // namespace
}  // namespace lsnn::cpu
