// The contract: one recurrence for every model, what goes in and what comes out. Nothing here
// depends on a device.
//
// Per batch item and neuron: v membrane, a adaptation, i synaptic current, r refractory counter, z
// spikes. A prime marks the value carried from the step before; z[t-1-d] are past spikes.
// Coefficients are per neuron.
//
// clang-format off
//   (1) c = x_t + sum_j w_jk z_j[t-1-d_jk]     d_jk: extra delay, one for all or one per synapse
//   (2) i = sigma i' + c                       sigma = 0: no synapse
//   (3) a = rho a' + q e' + p v'               e' = drive: spike z' | cross [v' over A'] |
//                                              above [v' over theta]
//   (4) A = theta + beta a
//   (5) y = alpha v' + kappa (i - eta a)
//   (6) u = reset(y, z') when = next, else y   reset(y, z) = y - z A | y - z R | (1 - z) y + z R
//   (7) m = (n - A) / s                        n = u (test new) or v' (old); s = width, or width A
//       z = [m > 0] (ge: >=), 0 while r' > 0   dz/dm := psi(m), 0 while r' > 0
//   (8) v = reset(u, z)  when = now, else u
//   (9) r = n_ref after a spike, else max(r' - 1, 0)
// clang-format on
//
// A synapse may have a weight w_djk for each delay d: then (1) sums over d too. With a kernel of
// delays, (1) is c = x_t + sum_j w_jk f_j with f_j = sum_s kernel_sj z_j[t-1-taps_s]. Without
// recurrent weights c = x_t. The forward pass saves y of (5), the spikes as bits and, every
// `segment` steps, the carried state; the backward pass recomputes all else. Sums of (1) run over
// ascending delay, then ascending j, without fused multiply-add, so that all paths are bitwise
// identical.
#pragma once
#include <cstdint>
#include <limits>

#include "dynamics.h"
#include "options.h"
#include "platform.h"

namespace lsnn {

enum Coefficient { ALPHA, KAPPA, RHO, Q, P, BETA, ETA, THETA, SIGMA, WIDTH, R_, n_coefficients };
inline constexpr const char* coefficient_names[] = {"alpha", "kappa", "rho",   "q",     "p", "beta",
                                                    "eta",   "theta", "sigma", "width", "R"};

inline constexpr int64_t segment = 128;  // steps between two saved states
// steps that the backward pass recomputes and keeps at a time; divides segment
inline constexpr int64_t chunk = 16;

// 32-bit spike words of an item
LSNN_INLINE constexpr int64_t words(int64_t N) { return (N + 31) / 32; }
LSNN_INLINE constexpr int64_t segments(int64_t T, int64_t every = segment) {
  return (T + every - 1) / every;
}

inline constexpr int exact_parts = 3;  // bfloat16 numbers that add up to any float

// Sizes of a neuron; the defaults are those of the models in the table.
struct NeuronSizes {
  int64_t states = 4, traces = 3;
  int64_t currents = 1;  // sums (1) that a step reads
  int64_t saved = 1;  // rows that are saved of each step: y of (5), or the currents
  int64_t gradients = n_coefficients;
  bool whole_rows = false;  // one thread computes all neurons of an item
};

// Defines the layer; the same for both directions.
struct Layer {
  int64_t T, B, N;
  Model model;
  Surrogate surrogate;
  double dampening;
  int64_t n_ref;  // refractory steps of (9)
  // z = dampening * (antiderivative of psi): everything differentiable, for gradient checks
  bool smooth;
  const int64_t* delays;  // [S] distinct extra delays, ascending; null when S = 0
  int64_t S;  // number of distinct delays; 0: no recurrent weights, c = x in (1)
  int64_t D;  // past steps of the state: 1 + the largest delay; 1 when S = 0
  const int64_t* delay;  // [N,N] delay of each synapse, one of delays; or null
  const void* w;  // [matrices,N,N] from j to k, strides below; null when S = 0
  int64_t w_stride_j, w_stride_k;
  const void* coefficients;  // [n_coefficients,N]
  int64_t w_stride_s = 0;  // from one matrix to the next; not read for a single matrix
  // bfloat16 numbers that a factor of a product in the backward pass may be split into, 1 or 2; 3:
  // factors are exact
  int bf16_parts = exact_parts;
  // false: the diagonals of w count as 0 and have no gradient
  bool autapses = true;
  // w has packed rows, padded with zeros; the CPU kernels read them in place
  bool w_in_place = false;
  // [B] steps of each item, from 0 to T and descending over the batch, so that the active items of
  // a step come first; null: all T. In host memory, as delays. An item ends after its last step:
  // its last state is that of this step, and gradients of the last state enter there. Inputs of
  // later steps are not read; outputs of later steps, y and carry included, are 0.
  const int64_t* lengths = nullptr;

  LSNN_METHOD int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  LSNN_METHOD int64_t longest() const { return B > 0 ? length(0) : T; }
  // psi of (7) counts as 0 where |m| >= cutoff; ignored for surrogates with bounded support
  double cutoff = std::numeric_limits<double>::infinity();
  Options options = {};  // how both directions are computed
  // Null, or a registered neuron, neuron::NeuronTable<T> or cuda::NeuronModule, in place of model,
  // surrogate, dampening, n_ref and cutoff. Then w has [currents,N,N] for each matrix, delay is
  // [currents,N,N], coefficients are those that the neuron reads, and x, y, gx are
  // [T,B,currents,N]; smooth: its spikes are real numbers.
  const void* neuron = nullptr;
  NeuronSizes sizes = {};
  int64_t w_stride_current = 0;  // from the matrix of one current to the next
  // CPU kernels only: axonal delays, [n_taps,N] shares of the spikes of a neuron that act after
  // `taps` extra steps; or null. Then S is 1, w one matrix, and D is 1 + the last of taps.
  const void* kernel = nullptr;
  const int64_t* taps = nullptr;  // [n_taps] ascending
  int64_t n_taps = 0;
  // CPU kernels only: [B,N] spikes that act through (1), not 0; those of others count as 0 there.
  // Null: all.
  const uint8_t* mask = nullptr;

  // steps that dL/dc is kept for the product of the backward pass
  LSNN_METHOD int64_t kept() const { return n_taps ? 1 : D; }
};

// The layer with the weights and delays of one of its currents.
LSNN_INLINE Layer layer_of_current(const Layer& l, int64_t current, int64_t bytes) {
  Layer one = l;
  if (l.w) one.w = (const char*)l.w + current * l.w_stride_current * bytes;
  if (l.delay) one.delay = l.delay + current * l.N * l.N;
  return one;
}

// Matrices of w and of its gradient: one with `delay`, where each synapse has its own delay; else
// one for each delay, where each synapse has a weight for each.
LSNN_INLINE constexpr int64_t matrices(const Layer& l) { return l.delay && l.S ? 1 : l.S; }
// The matrix whose weights act with delays[s], where acts() is true.
template <class T> LSNN_INLINE const T* matrix(const Layer& l, int64_t s) {
  return (const T*)l.w + (matrices(l) > 1 ? s * l.w_stride_s : 0);
}
LSNN_INLINE constexpr bool acts(const Layer& l, int64_t j, int64_t k, int64_t delay) {
  return (l.autapses || j != k) && (matrices(l) == l.S || l.delay[j * l.N + k] == delay);
}

// Projection of sparse inputs, such as spikes: x_t of (1) is bias + w inputs_t, summed over the
// nonzero inputs in ascending order.
struct Projection {
  int64_t I = 0;  // inputs; 0: x is the current
  const void* w;  // [N,I], strides below
  int64_t w_stride_n, w_stride_i;
  const void* bias;  // [N] or null
  // [T,B,words(I)] inputs that are 0 or 1, in place of x; 0 beyond I
  const uint32_t* bits = nullptr;
};

// Readout: a leaky integrator of weighted spikes, p_t = k p_{t-1} + (1 - k) w z_t.
struct Readout {
  int64_t O = 0;  // outputs; 0: none
  const void* w;  // [O,N], strides below
  int64_t w_stride_o, w_stride_n;
  double k;
  const void* first;  // [B,O] p before the first step, or null: zeros
  // [O] added to the returned p, not to the carried one, or null; CUDA kernels only
  const void* bias = nullptr;
};

// The integrator without the product, which x holds; rows of n numbers, one for each item and
// output.
struct LeakyForward {
  int64_t T, n;
  double k;
  const void* x;  // [T,n]
  const void* first;  // [n] p before the first step, or null: zeros
  void* p;  // [T,n] written
  void* last;  // [n] written: p after the last step
};
struct LeakyBackward {
  int64_t T, n;
  double k;
  const void* gp;  // [T,n] dL/d p
  const void* gp_last;  // [n] dL/d last
  void* gx;  // [T,n] written
  void* gp_first;  // [n] written
};

// A linear map y = x W^T + bias, for the projection of inputs outside of the operator. The CUDA
// kernels only take inputs as bits, and no repeated gradients.
struct Linear {
  int64_t R, I, N;
  const void* x;  // [R,I], or not read: see bits
  const void* w;  // [N,I], strides below; forward only
  int64_t w_stride_n, w_stride_i;
  const void* bias;  // [N] or null; forward only
  void* y;  // [R,N] written; forward only
  const void* g;  // [g_rows,N] dL/dy; backward only
  int64_t g_rows;  // row r has the gradient r % g_rows; R, or fewer where they repeat
  void* gw;  // [N,I] written; backward only
  void* gbias;  // [N] written, or null; CPU only
  const uint32_t* bits = nullptr;  // [R,words(I)] of inputs that are 0 or 1, in place of x
};

// State carried between steps. Outputs may be null: not wanted.
struct State {
  void *v, *a, *i, *r;  // [B,N]
  void* z;  // [D,B,N] past spikes, newest first; any real number
  void* const* others = nullptr;  // [states] of a registered neuron, each [B,N], in place of v to r

  LSNN_METHOD void* of(int64_t s) const {
    if (others) return others[s];
    return s == 0 ? v : s == 1 ? a : s == 2 ? i : r;
  }
};

// Allocated in torch/forward_op.cpp, passed to the backward pass by lsnn_ext/_ops/autograd.py.
struct Saved {
  // [T,B,N] membrane before any reset (5), or the currents [T,B,currents,N] of a registered neuron;
  // null: the backward pass recomputes it
  void* y;
  uint32_t* bits;  // [T,B,words(N)] spikes, written unless null, also without `save`
  void* z;  // [T,B,N] smooth spikes, or null
  void* carry;  // [segments(T,every),states,B,N] v', a', i', r' at the start of each segment
  bool y_is_bf16 = false;  // half the memory, for float; gradients then round with y
  // steps of a segment; the CUDA kernels only take `segment`, and `chunk` for a registered neuron
  int64_t every = segment;
  // CUDA kernels only: [cuda::packed_numbers()] weights and coefficients as the kernels read them,
  // written unless null, also without `save`; null: the backward pass packs them again
  void* packed = nullptr;
};

struct ForwardArgs {
  Layer layer;
  const void* x;  // [T,B,N] current
  int64_t x_stride_t, x_stride_b;  // neurons are contiguous
  State first;  // read
  State last;  // written
  // [T,B,N] spikes as numbers; null: not wanted, which the CUDA kernels allow with saved.bits
  void* z;
  void *trace_v, *trace_a, *trace_A;  // [T,B,N] or null
  bool save;
  Saved saved;  // written when save
  Projection projection = {};  // CPU kernels only; x is [T,B,I] then
  Readout readout = {};
  void* readout_p = nullptr;  // [T,B,O] written
  void* readout_last = nullptr;  // [B,O] written
  void* const* other_traces = nullptr;  // [traces] of a registered neuron, instead

  LSNN_METHOD void* trace(int64_t k) const {
    if (other_traces) return other_traces[k];
    return k == 0 ? trace_v : k == 1 ? trace_a : trace_A;
  }
};

struct BackwardArgs {
  Layer layer;
  State first;  // read: the state the forward pass started from
  Saved saved;  // read
  const void* gz;  // [T,B,N] dL/dz or null
  int64_t gz_stride_t, gz_stride_b, gz_stride_n;
  const void *gv, *ga, *gA;  // [T,B,N] gradients of the traces, or null
  State glast;  // read: dL/d(last state); r unused; entries may be null
  unsigned want;  // bit k: gradient of coefficient k
  void* gx;  // [T,B,N] written; null for the CPU kernels: not wanted
  void* gw;  // [matrices,N,N] written, or null; null when S = 0
  void* gcoefficients;  // [n_coefficients,N] written where wanted, or null when want = 0
  State gfirst;  // written, r unused; entries may be null
  // Of what follows the CUDA kernels use the readout, those of a registered neuron only `existing`
  // and the traces. x: [T,B,N] as in the forward pass, read where y was not saved; [T,B,I] of a
  // projection
  const void* x = nullptr;
  int64_t x_stride_t = 0, x_stride_b = 0;
  Projection projection = {};
  void* gw_in = nullptr;  // [N,I] written
  void* gbias = nullptr;  // [N] written, or null
  Readout readout = {};
  const void* gp = nullptr;  // [T,B,O] dL/d p
  const void* gp_last = nullptr;  // [B,O] dL/d (p after the last step), or null
  void* gw_out = nullptr;  // [O,N] written
  void* gp_first = nullptr;  // [B,O] written
  bool existing = false;  // gw only of nonzero synapses, else 0
  void* gbias_out = nullptr;  // [O] written, or null
  const void* const* other_traces = nullptr;  // [traces] as of ForwardArgs, in place of gv, ga, gA
  void* gkernel = nullptr;  // [n_taps,N] written, or null

  LSNN_METHOD const void* g_trace(int64_t k) const {
    if (other_traces) return other_traces[k];
    return k == 0 ? gv : k == 1 ? ga : gA;
  }
};

// Polled by every thread between chunks of steps: whether cancellation was requested; the results
// are void then. Null: never.
struct Interrupt {
  bool (*wanted)(void* context) = nullptr;
  void* context = nullptr;
};

// Runs body(index, context) for index = 0..n-1, in any order, on about `threads` threads.
struct Parallel {
  void (*run)(int64_t n, void (*body)(int64_t index, void* context), void* context);
  int64_t threads;
  Interrupt interrupt = {};
};

}  // namespace lsnn
