// The layer as packed for the CPU kernels, and the kernels of an instruction set.
#pragma once
#include "../../lsnn_ext/codegen/neuron.h"
#include "../alif_math.h"
#include "barrier.h"
#include "bytecode.h"
#include "counters.h"
#include "run.h"

namespace lsnn::cpu {

// rows of weights and state are padded to this many numbers: whole vectors and panels everywhere
inline constexpr int64_t pad = 32;
inline constexpr int64_t padded(int64_t n) { return (n + pad - 1) / pad * pad; }
// whole vectors; readouts are small
inline constexpr int64_t padded_outputs(int64_t O) { return (O + 15) / 16 * 16; }

// Items of a tile, which one thread or team computes for the whole sequence. The size depends only
// on B, so that gradients are summed in the same order for any number of threads.
inline constexpr int64_t max_items = 16;
inline constexpr int64_t tile_items(int64_t B) {
  return B >= 32 ? max_items : B >= 8 ? 4 : B >= 4 ? 2 : 1;
}
inline constexpr int64_t tiles(int64_t B) { return (B + tile_items(B) - 1) / tile_items(B); }

// Rows of Packed::coefficients after those of the coefficients, in the order of Coefs.
enum PackedRow {
  DAMPENING = n_coefficients,
  N_REF,
  CUTOFF,
  INVERSE_KAPPA,
  INVERSE_WIDTH,
  packed_coefficients
};
static_assert(sizeof(Coefs<float>) == packed_coefficients * sizeof(float));
static_assert(pad == neuron::row_padding && max_items == neuron::max_items);

// Numbers of a row of dL/dc and dL/dz: an odd multiple of four cache lines. This spreads the same
// columns of 16 items evenly over the sets of the L1 cache; rows of a power of two would conflict.
template <class T> inline constexpr int64_t gradient_stride(int64_t NP) {
  constexpr int64_t line = 64 / (int64_t)sizeof(T);
  return NP + line * (1 + (11 - NP / line % 8) % 8);
}

// Synapses in rows of [S * N]; row r: entries [start[r], start[r + 1]).
template <class T> struct Sparse {
  const uint32_t* start;   // [S * N + 1], or null: no list
  const uint16_t* column;  // [entries] ascending in each row
  const T* value;          // [entries], or null where values are not needed
};

// The same for the backward product, where a row of [groups * N] concatenates the synapses of a
// neuron with several delays: each group has some of the delays, ascending.
template <class T> struct SparseGroups {
  int64_t groups;
  int64_t span;          // largest number of steps that the delays of a group span; 0: no list
  const int64_t* delay;  // [groups] smallest delay of each
  // a column k with delay d of group g is k + (d - delay[g]) * N
  Sparse<T> rows;
};

template <class T> struct Packed {
  int64_t l1_size;  // bytes
  int64_t NP;  // padded(N)
  int64_t W;  // words(N)
  // [currents][S * N,NP] w_jk of the synapses that act with delays[s], else 0; or null where only
  // lists of synapses are read
  const T* w;
  const T* w_in;  // [I,NP] weights of the inputs; follow w unless it is null
  const T* bias;  // [NP] of the inputs
  // [currents][S,NP/panel,N,panel] w_jk with j innermost, in panels of j, for the backward product;
  // or null
  const T* panels;
  bool has_active_products = true;  // whether products may read rows of active neurons in w
  const T* w_out;  // [N,OP] of the readout
  const T* panels_out;  // [NP/panel,O,panel] the same with j innermost
  const T* kernel;  // [NP/lanes,n_taps,lanes] of Layer, padded with zeros
  // [NP/lanes,packed_coefficients,lanes] padded with valid values; rows as in Coefs, or those of a
  // registered neuron
  const T* coefficients;
  bool beta_is_zero;
  // from one current to the next: numbers of w with w_in, and of panels
  int64_t w_stride, panels_stride;
  const uint16_t* w_bf16;  // [S * N,NP] bfloat16 of w without the inputs, or null: not wanted
  // nonzero synapses, where they are few; product: for the backward pass
  Sparse<T> sparse;
  SparseGroups<T> product;
  // synapses with a gradient; no list: the gradient has full rows
  Sparse<T> learning;
  bool sum_sparse;  // whether (1) adds entries of `sparse` instead of rows
  // of the backward product; automatic: by sizes and activity, step by step
  ProductAlgorithm algorithm;
  GeneralSpec spec;
  const Hooks* hooks;  // of counters.h
};

// Sums over the batch that a tile adds to, or null.
template <class T> struct Sums {
  T* w;  // [currents][S * N,NP], or [entries] of Packed::learning
  T* w_in;  // [I + 1,NP] last row: bias
  T* w_out;  // [N,OP]
  T* k;  // [gradients,NP]
  T* kernel;  // as Packed::kernel
};

template <class T> struct Kernels {
  int64_t lanes;  // numbers of a vector
  int64_t panel;  // columns of a panel of the backward product
  ScratchBytes (*forward_scratch)(const ForwardArgs&, int64_t members);  // of one tile
  // span: of SparseGroups, 0 without
  ScratchBytes (*backward_scratch)(const BackwardArgs&, int64_t span, bool bf16, int64_t members);
  // Called by each member of a team.
  void (*forward_tile)(const ForwardArgs&, const Packed<T>&, int64_t tile, const Member&);
  void (*backward_tile)(const BackwardArgs&, const Packed<T>&, int64_t tile, const Member&,
                        const Sums<T>& sums);
  // Conversion to bfloat16, null where the instruction set has no such products; and a product to
  // be timed, half of the results of w [n,n] with d, which has room for 2 max_items n numbers, in
  // bfloat16 or not.
  void (*to_bf16)(const T* from, int64_t n, uint16_t* to);
  void (*trial)(int64_t n, const T* w, const uint16_t* w_bf16, const T* d, T* out,
                uint32_t* entries, bool bf16);
  int64_t (*linear_scratch)(const Linear&);  // bytes
  void (*linear_forward)(const Linear&, const T* w, const T* bias, int64_t r0, int64_t r1,
                         void* scratch);
  void (*linear_gradient)(const Linear&, int64_t r0, int64_t r1, T* gw, void* scratch);
  void (*spike_counts)(const Linear&, int64_t c0, int64_t c1, T* counts);
  bool (*spike_bits)(const T* x, int64_t I, int64_t r0, int64_t r1, uint32_t* bits);
  void (*leaky_forward)(const LeakyForward&, int64_t c0, int64_t c1);
  void (*leaky_backward)(const LeakyBackward&, int64_t c0, int64_t c1);
  neuron::NeuronTable<T> (*interpreter)(const neuron::Bytecode&);
};

}  // namespace lsnn::cpu
