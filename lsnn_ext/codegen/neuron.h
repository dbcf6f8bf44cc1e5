// The boundary between the kernels and a neuron: a table of four functions over a row of neurons.
//
// The kernels of csrc/cpu do all else: events, products with the weights, chunks, threads, delays,
// lengths. They are compiled once and call a neuron through this table, whether it is a model of
// lsnn_ext/models.py (csrc/cpu/model_kernels.h), a step that was traced and compiled (rows.h), or a
// step that is interpreted (csrc/cpu/interpreter.h).
//
// A neuron has S states, K currents, one spike z, C coefficients and G gradients of coefficients.
// A prime marks what a step reads: (states, z) = step(c, states', z', coefficients). All sizes
// below are in numbers of T. Rows have NP numbers, N of them with a meaning; the functions compute
// the neurons [n0, n1), where n0 is a multiple of 32 and n1 is another or N, and may read and write
// up to the next multiple of 32.
#pragma once
#include <stdint.h>

namespace lsnn::neuron {

inline constexpr int32_t abi_version = 2;
inline constexpr int max_states = 16, max_currents = 8, max_coefficients = 64, max_gradients = 32;
inline constexpr int max_means = 16;
inline constexpr int64_t max_items = 16;  // of a tile
inline constexpr int64_t row_padding = 32;

// Spikes of an item: bits where numbers is null, else numbers.
template <class T> struct Spikes {
  const uint32_t* bits;  // [NP / 32]
  const T* numbers;  // [numbers_end]
  int64_t numbers_end;  // N, or NP
};
// The same of several items: pointers are those of the first, strides lead from item to item.
template <class T> struct SpikesOfItems {
  Spikes<T> first;
  int64_t bits_stride, numbers_stride;
};
// Rows of NP numbers, `stride` apart: state s begins at first + s * stride.
template <class T> struct Rows {
  T* first;
  int64_t stride;
};

// One step of one item.
template <class T> struct StepRow {
  const T* coefficients;  // [NP / lanes, packed, lanes]
  int64_t n0, n1, N;
  Rows<const T> c;  // [K] currents
  Spikes<T> before;  // z'
  Rows<T> states;  // [S] read and written
  bool is_last;  // whether the states are read by others than the next step of this item
  T* z_numbers;  // [NP] z, written where the neuron's spikes are numbers
  // Written where not null:
  uint32_t* bits;  // [NP / 32] z > 0
  Rows<T> saved;  // [saved] what a replay reads, up to NP
  T* z;  // [NP]
  T* const* traces;  // [traces] each null or [N], which is not padded
};

// Some steps of one item, of which only the states after the last one are wanted. Pointers are
// those of the first step; strides lead from step to step.
template <class T> struct ReplaySteps {
  const T* coefficients;
  int64_t n0, n1, N, steps;
  Spikes<T> before, after;  // z' and z; the bits of z are there also where it is numbers
  int64_t bits_stride, numbers_stride;
  Rows<const T> saved;  // [saved] rows of N numbers
  const uint16_t* saved_bf16;  // in place of saved, bfloat16; models only
  int64_t saved_stride;  // from step to step
  Rows<const T> read;  // [S]
  Rows<T> left;  // [S] written
};

// One step of one item, and which of its neurons are active: those whose spike can pass a gradient
// on. Where the table says that all are, `active` is not written.
template <class T> struct ReplayRow {
  const T* coefficients;
  int64_t n0, n1, N;
  Spikes<T> before, after;
  Rows<const T> saved;
  Rows<const T> read;
  Rows<T> left;
  uint16_t* active;  // [NP / 16, max_items] of this item: bit n % 16 of active[n / 16 * max_items]
};

// The adjoint of one step of several items. Pointers are those of the first item.
template <class T> struct AdjointRows {
  const T* coefficients;
  int64_t items, n0, n1, N, NP;
  Rows<const T> saved;  // rows of N numbers
  int64_t saved_items;  // from item to item
  SpikesOfItems<T> before, after;  // z' and z
  Rows<const T> read;  // [S] states', rows of items NP apart
  Rows<T> d_states;  // [S] dL/dstates in, dL/dstates' out; items NP apart
  T* dz;  // [NP] dL/dz in, dL/dz' out; items dz_stride apart
  int64_t dz_stride;  // of dz and dc
  // [N] a further part of dL/dz, or null; gz_next: that of the step to come next, or null
  const T *gz, *gz_next;
  int64_t gz_stride_b, gz_stride_n;
  const T* const* g_traces;  // [traces] dL/dtraces, each null or [N]; items N apart
  Rows<T> dc;  // [K] dL/dc written; items dz_stride apart
  Rows<T> gx;  // [K] the same in rows of N, or null; items gx_items apart
  int64_t gx_items;
  T* sums;  // [G, NP] gradients of coefficients are added to, over the items, or null
  uint32_t want;  // bit g: gradient g is wanted
  bool is_first, is_last;  // of the sequence: the first step; the last one of some item
  // Only where the table replays nothing: what the step before has read and saved, in place of
  // `read`; null in the first step of a segment.
  const T *saved_before, *saved_ahead;
  SpikesOfItems<T> before_that;
};

// settings: those of the table.
template <class T> struct NeuronTable {
  int32_t abi_version;
  int32_t number_bytes, lanes;  // of T; of a vector, which the layout of coefficients follows
  int32_t states, currents, gradients, traces;
  int32_t packed;  // rows of coefficients that the functions read
  int32_t saved;  // rows that a step saves: 1, or its currents
  bool saves_currents;  // they are the currents c, which the kernels copy
  bool has_number_spikes;  // z is any number; else it is 0 or 1
  bool has_inactive;  // some neurons may not be active, and replay() finds them
  bool replays;  // false: adjoint() finds states' by itself, see AdjointRows
  bool has_product;  // whether the gradient of (1) reaches past spikes
  bool whole_rows;  // the functions take all neurons at once: n0 = 0, n1 = N
  uint32_t carried;  // bit s: replay() reads state s
  const void* settings;
  void (*step)(const void* settings, const StepRow<T>&);
  void (*replay_steps)(const void* settings, const ReplaySteps<T>&);
  int64_t (*replay)(const void* settings, const ReplayRow<T>&);  // returns the number of active
  void (*adjoint)(const void* settings, const AdjointRows<T>&);
};

}  // namespace lsnn::neuron
