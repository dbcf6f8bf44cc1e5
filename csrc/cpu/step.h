// A step of a tile for the neurons of one member: events of each item, their sum (1), and the step
// of the neurons. Used by the forward pass, and by the backward pass where it recomputes y.
#pragma once
#include "events.h"
#include "model_kernels.h"
#include "numbers.h"
#include "product_sparse.h"
#include "sources.h"

namespace lsnn::cpu {
namespace {

template <class T> struct StepScratch {
  T* states;  // [states,items,NP] carried
  T* z;  // [items,NP] z' as numbers: in the first step, and with smooth spikes
  T* c;  // [items,currents,NP] the sums of (1): with smooth spikes of all items, else of one
  int64_t capacity;  // most events of an item in a step
  // [items,capacity] offsets of weight rows, or row numbers with lists of synapses
  uint32_t* rows;
  T* weights;  // [items,capacity] factors of those rows, for items where any factor is not 1
  uint32_t* nonzero;  // [items,words(I) + 1] nonzero inputs

  StepScratch(Arena& own, const Layer& l, const Projection& in) : capacity(in.I + l.S * l.N + pad) {
    const int64_t n = tile_items(l.B), NP = padded(l.N);
    states = own.take<T>(l.sizes.states * n * NP);
    z = own.take<T>(n * NP);
    c = own.take<T>((l.smooth ? n : 1) * l.sizes.currents * NP);
    rows = own.take<uint32_t>(n * capacity);
    weights = own.take<T>(n * capacity);
    nonzero = own.take<uint32_t>(n * (words(in.I) + 1));
  }
};

// Rows of weights that are added to the sums of all items in turn.
inline constexpr int64_t few_rows = 16;
// Of fewer items, sums over events are faster.
inline constexpr int64_t few_items = 4;

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
  const int64_t row_stride;  // unit of a list of rows: NP numbers, or 1
  const Sources<T> sources;
  int64_t n[max_items];  // events of each item in this step
  int64_t n_inputs[max_items];  // of these, inputs; they come first
  bool weighted[max_items];  // whether they have factors
  int64_t input_rows;  // events of inputs, of all items
  mutable Meter meter;

  LSNN_METHOD Steps(const Layer& layer, const Packed<T>& packed, const StepScratch<T>& scratch,
                    const SourceScratch<T>& source_scratch, int64_t tile, const Member& member,
                    const void* x, int64_t x_stride_t, int64_t x_stride_b, const Projection& in,
                    const void* z0)
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
        sources(layer, packed.kernel, source_scratch, tile, member, z0),
        meter(packed.hooks) {}

  // Carried states of item b.
  LSNN_METHOD Rows<T> states(int64_t b) const { return {s.states + b * NP, state_size}; }

  // past < 0
  LSNN_METHOD const T* first_z(int64_t past, int64_t b) const { return sources.first_z(past, b); }
  LSNN_METHOD const T* x_row(int64_t t, int64_t b) const {
    return x + t * x_stride_t + (b0 + b) * x_stride_b;
  }

  // A bit for each nonzero input of item b; valid after collect().
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
      if (z[j] != T(0) && sources.acts(b, j)) {
        s.rows[b * s.capacity + n[b]] = (uint32_t)((first + j) * row_stride);
        s.weights[b * s.capacity + n[b]++] = z[j];
      }
  }
  template <class Past> LSNN_METHOD void add_filtered(int64_t t, int64_t b, const Past& past) {
    uint32_t* rows = s.rows + b * s.capacity;
    T* weights = s.weights + b * s.capacity;
    sources.filter(t, b, past);
    int64_t e = n[b];
    n[b] = set_bits(sources.s.bits, words(N), 0, 1, rows, e);
    for (; e < n[b]; e++) {
      weights[e] = sources.s.f[rows[e]];
      rows[e] *= (uint32_t)row_stride;
    }
  }
  // Inputs come first; their weight rows follow those of the recurrence, if any.
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

  // The sums of (1) of an item.
  LSNN_METHOD T* sums(int64_t b) const { return s.c + (l.smooth ? b : 0) * K * NP; }
  // Events of an item that add rows of weights; those that add listed synapses follow.
  LSNN_METHOD int64_t row_events(int64_t b) const { return p.sum_sparse ? n_inputs[b] : n[b]; }
  LSNN_METHOD const T* weights_of(int64_t k) const {
    return (p.w ? p.w : p.w_in) + k * p.w_stride + n0;
  }

  // The rows in the sums of smooth spikes, where items have nearly the same: a few for each item in
  // turn, which stay in the L1 cache.
  LSNN_METHOD void sum_rows_of_items(int64_t t) const {
    const int64_t alive = items_alive(t);
    int64_t most = 1;
    for (int64_t b = 0; b < alive; b++) most = row_events(b) > most ? row_events(b) : most;
    for (int64_t k = 0; k < K; k++)
      each_block<T>(n1 - n0, [&](int64_t vectors, int64_t at) LSNN_LAMBDA {
        for (int64_t e = 0; e < most; e += few_rows)
          for (int64_t b = 0; b < alive; b++) {
            const int64_t list = b * s.capacity + e, left = row_events(b) - e;
            T* const c = sums(b) + k * NP + n0 + at;
            const T* from = e ? c : (I ? p.bias : x_row(t, b)) + k * N + n0 + at;
            if (!e || left > 0)
              sum_columns<column_vectors, true>(vectors, weights_of(k) + at, s.rows + list,
                                                s.weights + list, left < few_rows ? left : few_rows,
                                                from, e ? NP : n1 - n0 - at, c);
          }
      });
  }

  // Adds the sums over past spikes as numbers, if they are dense; false: they are not.
  template <class Past> LSNN_METHOD bool sum_numbers_of_items(int64_t t, const Past& past) const {
    const int64_t alive = items_alive(t);
    if (!l.smooth || l.n_taps || l.mask || p.sum_sparse || alive < few_items) return false;
    const T* z[max_items];
    bool is_dense = false;
    for (int64_t d = 0; d < l.S; d++) {
      const int64_t t_past = t - 1 - l.delays[d];
      for (int64_t b = 0; b < alive; b++)
        z[b] = t_past < 0 ? first_z(t_past, b) : past.real(t_past, b);
      if (!d && !(is_dense = are_dense(z, alive, N))) return false;
      if (!d) sum_rows_of_items(t);
      for (int64_t k = 0; k < K; k++)
        for (int64_t at = 0; at < n_end - n0; at += panel<T>)
          for (int64_t j = 0; j < N; j += few_rows)
            each_group<product_items>(0, alive,
                                      NumberSums<T>{weights_of(k) + (d * N + j) * NP + at, NP,
                                                    N - j < few_rows ? N - j : few_rows, z, j,
                                                    sums(0) + k * NP + n0 + at, K * NP});
    }
    return is_dense;
  }

  // Collects the events of step t: for all items before any is summed, and all words of bits before
  // any is unpacked, since loads wider than recent stores cause store-forwarding stalls. Smooth
  // ones are summed. Past spikes are past.bits(t, b, member) [W], in one part or in one for each
  // member, or past.real(t, b) [N] if smooth.
  template <class Past> LSNN_METHOD void collect(int64_t t, const Past& past) {
    input_rows = 0;
    const int64_t alive = items_alive(t);
    for (int64_t b = 0; b < alive; b++) {
      weighted[b] = l.smooth || t < l.D || l.n_taps;
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
    }
    if (sum_numbers_of_items(t, past)) return;
    for (int64_t b = 0; b < alive; b++) {
      if (l.n_taps) add_filtered(t, b, past);
      for (int64_t d = 0; d < l.S && !l.n_taps; d++) {
        const int64_t t_past = t - 1 - l.delays[d], first = d * N;
        if (t_past < 0) add_real(b, first_z(t_past, b), first);
        else if (l.smooth) add_real(b, past.real(t_past, b), first);
        else
          each_member_bits(past, t_past, b,
                           [&](const uint32_t* bits, int64_t n_words, int64_t n) LSNN_LAMBDA {
                             const uint32_t* acting = sources.masked(b, bits, n_words, n);
                             add_bits(b, acting, n_words, first + n);
                           });
      }
    }
    if (l.smooth) sum_rows_of_items(t);
  }

  // Outputs of a step as in StepRow; null: not written.
  struct Written {
    bool is_last;
    uint32_t* bits;
    Rows<T> saved;
    T* z;
    T* const* traces;
  };

  // Item b at step t: (1), unless spikes are smooth, to (9). before: bits of z', or null if s.z
  // holds z'.
  LSNN_METHOD void advance(int64_t t, int64_t b, const uint32_t* before, const Written& to) const {
    const T* start = I ? p.bias : x_row(t, b);
    if (!I && t + 1 < l.T)
      for (int64_t k = 0; k < K; k++)
        for (int64_t n = n0; n < n1; n += 64 / (int64_t)sizeof(T))
          prefetch(start + x_stride_t + k * N + n);
    const int64_t list = b * s.capacity, whole = row_events(b);
    const uint32_t* rows = s.rows + list;
    const T* weights = weighted[b] ? s.weights + list : nullptr;
    T* const c = sums(b);
    for (int64_t k = 0; k < K && !l.smooth; k++)
      sum_events(weights_of(k), rows, weights, whole, start + k * N + n0, n1 - n0,
                 c + k * NP + n0);  // (1)
    if (p.sum_sparse)
      add_sparse_events(p.sparse, N, rows + whole, weights ? weights + whole : nullptr,
                        n[b] - whole, c, n0, n1);
    meter.split_item(0);
    if (neuron.saves_currents && to.saved.first)
      for (int64_t k = 0; k < K; k++)
        memcpy(to.saved.first + k * to.saved.stride + n0, c + k * NP + n0, (n1 - n0) * sizeof(T));
    neuron.step(neuron.settings, {.coefficients = p.coefficients,
                                  .n0 = n0,
                                  .n1 = n1,
                                  .N = N,
                                  .c = {c, NP},
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
