// A row of neurons: step(), replay() and step_adjoint() of alif_math.h for the neurons [n0, n1) of
// one item. No other loop of the CPU kernels depends on the model: model_kernels.h compiles these
// for each, and the rest is compiled once.
#pragma once
#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// Of lanes [n, n + lanes); coefficients: those of Packed.
template <class T> LSNN_INLINE Coefs<Vec<T>> load_coefficients(const T* coefficients, int64_t n) {
  const T* k = coefficients + n * packed_coefficients;
  auto row = [&](int i) LSNN_LAMBDA { return load(k + i * Vec<T>::lanes); };
  return {row(ALPHA),        row(KAPPA),     row(RHO),   row(Q),      row(P),
          row(BETA),         row(ETA),       row(THETA), row(SIGMA),  row(WIDTH),
          row(R_),           row(DAMPENING), row(N_REF), row(CUTOFF), row(INVERSE_KAPPA),
          row(INVERSE_WIDTH)};
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

// Rows of the tile's items, a stride apart.
template <class T> struct RowsOf {
  const T* first;
  int64_t stride;
};

// The same of several items: pointers are those of the first, strides lead from item to item.
template <class T> struct SpikesOfItems {
  Spikes<T> first;
  int64_t bits_stride, numbers_stride;

  LSNN_METHOD Spikes<T> of(int64_t b) const {
    return {first.bits ? first.bits + b * bits_stride : nullptr,
            first.numbers ? first.numbers + b * numbers_stride : nullptr, first.numbers_end};
  }
};

// Where an item's carried variables lie: [NP] each; i and r are not read where the model has none.
template <class T> struct CarriedRows { T *v, *a, *i, *r; };

// at: where lanes [n, n + L) of an item stand
template <class T>
LSNN_INLINE Carry<Vec<T>> load_carry(const CarriedRows<T>& rows, bool has_i, bool has_r,
                                     const Spikes<T>& z, int64_t at, int64_t n) {
  return {load(rows.v + at), load(rows.a + at), has_i ? load(rows.i + at) : Vec<T>(0),
          has_r ? load(rows.r + at) : Vec<T>(0), z(n)};
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
    Carry<V> carry = load_carry(row.carried, spec.synapse, spec.refractory, row.before, n, n);
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
    Carry<V> carry = load_carry(rows.read, has_i, spec.refractory, rows.before, n, n);
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
    Carry<V> carry = load_carry(row.read, has_i, spec.refractory, row.before, n, n);
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
// A step of some items. Pointers are those of the first one, strides lead from item to item.
template <class T> struct AdjointRows {
  const T* coefficients;
  int64_t items, n0, n1, N, NP;
  const T* y;  // [N]
  int64_t y_stride;
  SpikesOfItems<T> before, after;  // z' and z
  CarriedRows<T> read;  // [NP], or where v_suffices():
  const T* y_before;  // [N] y of the step before, as y, or null
  const T* y_ahead;  // [N] y of the step before that, to be fetched
  SpikesOfItems<T> before_that;  // what that one has read
  T *dv, *da, *di;  // [NP] read and written
  T* dz;  // [NP] the same
  bool read_di, write_di;
  // [N] dL/dz from outside, or null; gz_next: that of the step whose turn is next, or null
  const T *gz, *gz_next;
  int64_t gz_stride_b, gz_stride_n;
  const T *gv, *ga, *gA;  // [N] of the traces, or null
  T* dc;  // [NP] written
  int64_t dz_stride;  // of dz and dc
  T* gx;  // [N] the same as dc, or null
  T* sums;  // [n_coefficients,NP] those that are asked for are added to
};

template <class F> LSNN_INLINE Coefs<F> uniform(F x) {
  return {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

// Coefficients whose gradients are mostly wanted together.
inline constexpr unsigned membrane_group = 1 << ALPHA | 1 << KAPPA,
                          adaptation_group = 1 << RHO | 1 << Q,
                          threshold_group = 1 << BETA | 1 << THETA,
                          spike_group = 1 << WIDTH | 1 << R_,
                          term_group = 1 << P | 1 << ETA | 1 << SIGMA;

// Items inside, so that coefficients and their sums stay in registers.
template <class T, class Spec>
LSNN_LOCAL void adjoint_rows(const GeneralSpec& general, const AdjointRows<T>& given) {
  using V = Vec<T>;
  const Spec spec = spec_of<Spec>(general);
  const AdjointRows<T> rows = given;
  const int64_t NP = rows.NP, N = rows.N;
  const bool traced = rows.gv || rows.ga || rows.gA, has_i = spec.want >> SIGMA & 1;
  // with +0 the compiler has to keep the addition, which turns -0 round
  const Coefs<V> none = uniform(V(T(-0.0)));
  for (int64_t n = rows.n0; n < rows.n1; n += V::lanes) {
    const int64_t left = N - n;
    const Coefs<V> k = load_coefficients(rows.coefficients, n);
    Coefs<V> sums = {};
    for (int64_t b = 0; b < rows.items; b++) {
      const int64_t at = b * NP + n, at_z = b * rows.dz_stride + n, at_N = b * N + n;
      const Spikes<T> z1 = rows.before.of(b), z = rows.after.of(b);
      Carry<V> carry;
      if (rows.y_before) {
        prefetch(rows.y_ahead + b * rows.y_stride + n);
        carry = {V(0), V(0), V(0), V(0), rows.before_that.of(b)(n)};
        replay(spec, k, load_n(rows.y_before + b * rows.y_stride + n, left), z1(n),
               get_bits<T>(z1.bits, n), carry);
      } else {
        carry = load_carry(rows.read, has_i, spec.refractory, z1, at, n);
      }
      Adjoint<V> d = {load(rows.dv + at), load(rows.da + at),
                      rows.read_di ? load(rows.di + at) : V(0), load(rows.dz + at_z)};
      V Ab = V(0);
      if (rows.gz) {
        const int64_t at_g = b * rows.gz_stride_b + n * rows.gz_stride_n;
        if (rows.gz_next) prefetch(rows.gz_next + at_g);
        d.z = d.z + (rows.gz_stride_n ? load_n(rows.gz + at_g, left) : V(rows.gz[at_g]));
      }
      if (traced) {
        if (rows.gv) d.v = d.v + load_n(rows.gv + at_N, left);
        if (rows.ga) d.a = d.a + load_n(rows.ga + at_N, left);
        if (rows.gA) Ab = load_n(rows.gA + at_N, left);
      }
      Coefs<V> g = none;
      const V y = load_n(rows.y + b * rows.y_stride + n, left);
      const V dc = step_adjoint(spec, k, carry, y, z(n), Ab, d, g);
      store(rows.dv + at, d.v);
      store(rows.da + at, d.a);
      store(rows.dz + at_z, d.z);
      store(rows.dc + at_z, dc);
      if (rows.write_di) store(rows.di + at, d.i);
      if (rows.gx) store_n(rows.gx + at_N, dc, left);
      // In groups, as a test costs as much as a sum.
      if (spec.want & membrane_group) {
        sums.alpha = sums.alpha + g.alpha;
        sums.kappa = sums.kappa + g.kappa;
      }
      if (spec.want & adaptation_group) {
        sums.rho = sums.rho + g.rho;
        sums.q = sums.q + g.q;
      }
      if (spec.want & threshold_group) {
        sums.beta = sums.beta + g.beta;
        sums.theta = sums.theta + g.theta;
      }
      if (spec.want & spike_group) {
        sums.width = sums.width + g.width;
        sums.R = sums.R + g.R;
      }
      if (spec.want & term_group) {
        sums.p = sums.p + g.p;
        sums.eta = sums.eta + g.eta;
        sums.sigma = sums.sigma + g.sigma;
      }
    }
    auto add = [&](Coefficient c, V x) LSNN_LAMBDA {
      T* sum = rows.sums + c * NP + n;
      if (spec.want >> c & 1) store(sum, load(sum) + x);
    };
    add(ALPHA, sums.alpha);
    add(KAPPA, sums.kappa);
    add(RHO, sums.rho);
    add(Q, sums.q);
    add(P, sums.p);
    add(BETA, sums.beta);
    add(ETA, sums.eta);
    add(THETA, sums.theta);
    add(SIGMA, sums.sigma);
    add(WIDTH, sums.width);
    add(R_, sums.R);
  }
}

}  // namespace
}  // namespace lsnn::cpu
