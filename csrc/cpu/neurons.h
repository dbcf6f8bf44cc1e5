// A row of neurons: step(), replay() and step_adjoint() of alif_math.h for the neurons [n0, n1) of
// one item. All that depends on the model stands here, so that the rest of the CPU kernels is
// compiled once and these loops for each model.
#pragma once
#include <utility>

#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// Of lanes [n, n + lanes); coefficients: those of Packed.
template <class T> LSNN_INLINE Coefs<Vec<T>> load_coefficients(const T* coefficients, int64_t n) {
  const T* k = coefficients + n * packed_coefficients;
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
          row(n_coefficients + 1),
          row(n_coefficients + 2),
          row(n_coefficients + 3),
          row(n_coefficients + 4)};
}

// Spikes of an item: bits, or numbers in the steps before the first and where spikes are smooth.
template <class T> struct Spikes {
  const uint32_t* bits;  // [W]
  const T* numbers;  // [numbers_end], or null
  int64_t numbers_end;

  LSNN_METHOD Vec<T> operator()(int64_t n) const {  // of lanes [n, n + L)
    return numbers ? load_n(numbers + n, numbers_end - n)
                   : select(get_bits<T>(bits, n), Vec<T>(1), Vec<T>(0));
  }
};

// Where an item's carried variables lie: [NP] each; i and r are not read where the model has none.
template <class T> struct CarriedRows { T *v, *a, *i, *r; };

template <class T>
LSNN_INLINE Carry<Vec<T>> load_carry(const CarriedRows<T>& rows, bool has_i, bool has_r,
                                     const Spikes<T>& z, int64_t n) {
  return {load(rows.v + n), load(rows.a + n), has_i ? load(rows.i + n) : Vec<T>(0),
          has_r ? load(rows.r + n) : Vec<T>(0), z(n)};
}
template <class T> LSNN_INLINE void store_carry(const CarriedRows<T>& rows, bool has_i, bool has_r,
                                                const Carry<Vec<T>>& carry, int64_t n) {
  store(rows.v + n, carry.v);
  store(rows.a + n, carry.a);
  if (has_i) store(rows.i + n, carry.i);
  if (has_r) store(rows.r + n, carry.r);
}

// ----------------------------------------------------------------------------------------- forward
template <class T> struct StepRow {
  const T* coefficients = nullptr;
  int64_t n0 = 0, n1 = 0, N = 0;
  const T* c = nullptr;         // [NP] the sum of (1)
  Spikes<T> before = {};        // z'
  CarriedRows<T> carried = {};  // read and written
  T* smooth_z = nullptr;        // [NP] written where spikes are smooth: z' of the next step
  bool keep_i = false;  // whether i is asked for after the step though no later one reads it
  // What else is written, where not null: [W] bits of the spikes, [NP] numbers, [N] of the caller
  uint32_t* bits = nullptr;
  T *y = nullptr, *z = nullptr;
  T *trace_v = nullptr, *trace_a = nullptr, *trace_A = nullptr;
};

template <class T, class Spec>
LSNN_LOCAL void step_row(const GeneralSpec& general, const StepRow<T>& given) {
  using V = Vec<T>;
  // Locals, as every store through a pointer might change what a reference leads to.
  const Spec spec = spec_of<Spec>(general);
  const StepRow<T> row = given;
  const bool write_i = spec.synapse || row.keep_i;
  const bool traced = row.trace_v || row.trace_a || row.trace_A;
  for (int64_t n = row.n0; n < row.n1; n += V::lanes) {
    const Coefs<V> k = load_coefficients(row.coefficients, n);
    Carry<V> carry = load_carry(row.carried, spec.synapse, spec.refractory, row.before, n);
    const Stepped<V> out = step(spec, k, load(row.c + n), carry);
    store_carry(row.carried, write_i, spec.refractory, carry, n);
    if (spec.smooth) store(row.smooth_z + n, carry.z);
    if (row.bits) put_bits<T>(row.bits, n, to_bits(out.fired));
    if (row.y) store(row.y + n, out.y);
    if (row.z) store(row.z + n, carry.z);
    if (!traced) continue;
    if (row.trace_v) store_n(row.trace_v + n, carry.v, row.N - n);
    if (row.trace_a) store_n(row.trace_a + n, carry.a, row.N - n);
    if (row.trace_A) store_n(row.trace_A + n, out.A, row.N - n);
  }
}

// ------------------------------------------------------------------------------------------ replay
template <class T> struct ReplayRow {
  const T* coefficients;
  int64_t n0, n1, N;
  const T* y;  // [N]
  Spikes<T> before, after;  // z' and z; the bits of z are there also where it is numbers
  CarriedRows<T> read, left;
  uint16_t* active;  // [NP/16,max_items] of this item: a bit for each neuron
};

// Some steps in a row, of which only what the last one leaves is wanted; pointers are those of the
// first step, strides lead from step to step.
template <class T> struct ReplaySteps {
  const T* coefficients;
  int64_t n0, n1, N, steps;
  Spikes<T> before, after;
  int64_t bits_stride, numbers_stride;
  const T* y;  // [N], or in bfloat16:
  const bfloat16* y_bf16;
  int64_t y_stride;
  CarriedRows<T> read, left;
};

template <class T, class Spec>
LSNN_LOCAL void replay_steps(const GeneralSpec& general, const ReplaySteps<T>& given) {
  using V = Vec<T>;
  const Spec spec = spec_of<Spec>(general);
  const ReplaySteps<T> rows = given;
  const bool has_i = spec.want >> SIGMA & 1;
  for (int64_t n = rows.n0; n < rows.n1; n += V::lanes) {
    const Coefs<V> k = load_coefficients(rows.coefficients, n);
    Carry<V> carry = load_carry(rows.read, has_i, spec.refractory, rows.before, n);
    Spikes<T> after = rows.after;
    int64_t t = 0;
    auto next = [&]() LSNN_LAMBDA {
      t++;
      after.bits += rows.bits_stride;
      if (after.numbers) after.numbers += rows.numbers_stride;
    };
    if (spikes_suffice(spec))
      for (; t < rows.steps - 1; next())
        replay_spikes(spec, k, after(n), get_bits<T>(after.bits, n), carry);
    for (; t < rows.steps; next()) {
      V y;
      if constexpr (sizeof(T) == 4)
        y = rows.y_bf16 ? load_n(rows.y_bf16 + t * rows.y_stride + n, rows.N - n)
                        : load_n(rows.y + t * rows.y_stride + n, rows.N - n);
      else y = load_n(rows.y + t * rows.y_stride + n, rows.N - n);
      replay(spec, k, y, after(n), get_bits<T>(after.bits, n), carry);
    }
    store_carry(rows.left, has_i, spec.refractory, carry, n);
  }
}

// One step. Returns how many neurons are active.
template <class T, class Spec>
LSNN_LOCAL int64_t replay_row(const GeneralSpec& general, const ReplayRow<T>& given) {
  using V = Vec<T>;
  constexpr int L = V::lanes;
  const Spec spec = spec_of<Spec>(general);
  const ReplayRow<T> row = given;
  const bool has_i = spec.want >> SIGMA & 1, choose = can_be_inactive(spec);
  int64_t n_active = 0;
  for (int64_t n = row.n0; n < row.n1; n += L) {
    const int64_t left = row.N - n;
    const Coefs<V> k = load_coefficients(row.coefficients, n);
    Carry<V> carry = load_carry(row.read, has_i, spec.refractory, row.before, n);
    const VecMask<T> blocked = replay(spec, k, load_n(row.y + n, left), row.after(n),
                                      get_bits<T>(row.after.bits, n), carry);
    store_carry(row.left, has_i, spec.refractory, carry, n);
    if (!choose) continue;
    const unsigned lanes =
        ~to_bits(blocked) & (left < L ? (1u << left) - 1 : unsigned((uint64_t(1) << L) - 1));
    row.active[n / 16 * max_items] |= (uint16_t)(lanes << n % 16);
    n_active += __builtin_popcount(lanes);
  }
  return n_active;
}

// ----------------------------------------------------------------------------------------- adjoint
template <class T> struct AdjointRow {
  const T* coefficients;
  int64_t n0, n1, N;
  const T* y;  // [N]
  Spikes<T> before, after;  // z' and z
  CarriedRows<T> read;
  T *dv, *da, *di, *dz;  // [NP] read and written
  bool read_di, write_di;
  const T* gz;  // [N] dL/dz from outside, with this stride, or null
  int64_t gz_stride;
  const T *gv, *ga, *gA;  // [N] of the traces, or null
  T *dc, *gx;  // [NP] written; gx may be null
  T* sums;  // [n_coefficients,NP] those that are asked for are added to
  int64_t NP;
};

// Coefficients whose gradients are mostly wanted together.
inline constexpr unsigned membrane_group = 1 << ALPHA | 1 << KAPPA,
                          adaptation_group = 1 << RHO | 1 << Q,
                          threshold_group = 1 << BETA | 1 << THETA,
                          spike_group = 1 << WIDTH | 1 << R_,
                          term_group = 1 << P | 1 << ETA | 1 << SIGMA;

template <class T, class Spec>
LSNN_LOCAL void adjoint_row(const GeneralSpec& general, const AdjointRow<T>& given) {
  using V = Vec<T>;
  const Spec spec = spec_of<Spec>(general);
  const AdjointRow<T> row = given;
  const bool traced = row.gv || row.ga || row.gA, has_i = spec.want >> SIGMA & 1;
  for (int64_t n = row.n0; n < row.n1; n += V::lanes) {
    const int64_t left = row.N - n;
    const Coefs<V> k = load_coefficients(row.coefficients, n);
    const Carry<V> carry = load_carry(row.read, has_i, spec.refractory, row.before, n);
    Adjoint<V> d = {load(row.dv + n), load(row.da + n), row.read_di ? load(row.di + n) : V(0),
                    load(row.dz + n)};
    V Ab = V(0);
    if (row.gz) d.z = d.z + (row.gz_stride ? load_n(row.gz + n, left) : V(*row.gz));
    if (traced) {
      if (row.gv) d.v = d.v + load_n(row.gv + n, left);
      if (row.ga) d.a = d.a + load_n(row.ga + n, left);
      if (row.gA) Ab = load_n(row.gA + n, left);
    }
    Coefs<V> g = {};
    const V dc = step_adjoint(spec, k, carry, load_n(row.y + n, left), row.after(n), Ab, d, g);
    store(row.dv + n, d.v);
    store(row.da + n, d.a);
    store(row.dz + n, d.z);
    store(row.dc + n, dc);
    if (row.write_di) store(row.di + n, d.i);
    if (row.gx) store(row.gx + n, dc);
    if (!spec.want) continue;
    auto add = [&](Coefficient c, V x) LSNN_LAMBDA {
      T* sum = row.sums + c * row.NP + n;
      store(sum, load(sum) + x);
    };
    // In groups, as a test costs as much as a sum.
    if (spec.want & membrane_group) {
      add(ALPHA, g.alpha);
      add(KAPPA, g.kappa);
    }
    if (spec.want & adaptation_group) {
      add(RHO, g.rho);
      add(Q, g.q);
    }
    if (spec.want & threshold_group) {
      add(BETA, g.beta);
      add(THETA, g.theta);
    }
    if (spec.want & spike_group) {
      add(WIDTH, g.width);
      add(R_, g.R);
    }
    if (spec.want & term_group) {
      add(P, g.p);
      add(ETA, g.eta);
      add(SIGMA, g.sigma);
    }
  }
}

// ----------------------------------------------------------------------------- the kernels by
// model
template <class T> struct NeuronKernels {
  void (*step)(const GeneralSpec&, const StepRow<T>&);
  void (*replay_steps)(const GeneralSpec&, const ReplaySteps<T>&);
  int64_t (*replay)(const GeneralSpec&, const ReplayRow<T>&);
  void (*adjoint)(const GeneralSpec&, const AdjointRow<T>&);
};

// What the forward pass does not read is the same for all, so that models that differ in nothing
// else share a kernel; of a surrogate the replay asks where it ends.
constexpr Choices of_forward(Choices c) {
  c.detach = detach_none;
  return c;
}
constexpr Surrogate of_replay(Surrogate s) {
  return has_bounded_support(s) ? s : Surrogate::arctan;
}

template <class T> constexpr NeuronKernels<T> general_kernels = {
    step_row<T, GeneralSpec>, replay_steps<T, GeneralSpec>, replay_row<T, GeneralSpec>,
    adjoint_row<T, GeneralSpec>};

// Of a model of the table with its own surrogate, by the terms that a layer has.
template <class T> struct ModelKernels {
  Choices choices;
  Surrogate surrogate;
  NeuronKernels<T> fixed, learned, synapse, coupling, all_terms;

  LSNN_METHOD const NeuronKernels<T>& operator[](const GeneralSpec& g) const {
    if (has_no_terms(g)) return g.want ? learned : fixed;
    if (g.synapse && !g.coupling && !g.current) return synapse;
    if (!g.synapse && g.coupling && g.current) return coupling;
    return all_terms;
  }
};

// Double precision is for checks, and the portable kernels are for processors of which nothing is
// known: they have one kernel for all terms. So has every model but the first where the build says
// so, as sanitizers make the compiler slow.
#ifdef LSNN_FEW_KERNELS
inline constexpr int models_by_terms = 1;
#else
inline constexpr int models_by_terms = n_models;
#endif
template <class T, int row, class Terms>
using Compiled =
    std::conditional_t < sizeof(T) == 4 && LSNN_ISA != 0 && row<models_by_terms, Terms, AllTerms>;

template <class T, int row, class Terms, class AdjointTerms>
constexpr NeuronKernels<T> kernels_with() {
  constexpr Choices choices = choices_of(row);
  constexpr Surrogate surrogate = models[row].surrogate;
  using Step = ModelSpec<of_forward(choices), Surrogate::triangle, Compiled<T, row, Terms>>;
  using Replay = ModelSpec<of_forward(choices), of_replay(surrogate), Compiled<T, row, Terms>>;
  using Adjoint = ModelSpec<choices, surrogate, Compiled<T, row, AdjointTerms>>;
  return {step_row<T, Step>, replay_steps<T, Replay>, replay_row<T, Replay>,
          adjoint_row<T, Adjoint>};
}
template <class T, int row> constexpr ModelKernels<T> kernels_of_model() {
  return {choices_of(row),
          models[row].surrogate,
          kernels_with<T, row, NoTerms, NoTerms>(),
          kernels_with<T, row, NoTerms, LearnedCoefficients>(),
          kernels_with<T, row, Synapse, Synapse>(),
          kernels_with<T, row, Coupling, Coupling>(),
          kernels_with<T, row, AllTerms, AllTerms>()};
}
template <class T> struct KernelTable { ModelKernels<T> of[n_models]; };
template <class T, int... rows>
constexpr KernelTable<T> kernels_of_models(std::integer_sequence<int, rows...>) {
  return {{kernels_of_model<T, rows>()...}};
}

// A model with another surrogate than its own keeps all kernels that do not read it.
template <class T> LSNN_LOCAL NeuronKernels<T> neuron_kernels(const GeneralSpec& spec) {
  static constexpr KernelTable<T> table =
      kernels_of_models<T>(std::make_integer_sequence<int, n_models>());
  NeuronKernels<T> chosen = general_kernels<T>;
  if (spec.smooth) return chosen;
  for (const ModelKernels<T>& of_model : table.of) {
    if (!same(of_model.choices, spec.model)) continue;
    const NeuronKernels<T>& known = of_model[spec];
    if (of_model.surrogate == spec.surrogate) return known;
    chosen.step = known.step;
    if (of_replay(of_model.surrogate) != of_replay(spec.surrogate)) continue;
    chosen.replay_steps = known.replay_steps;
    chosen.replay = known.replay;
  }
  return chosen;
}

}  // namespace
}  // namespace lsnn::cpu
