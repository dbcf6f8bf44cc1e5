// A row of neurons of a model: step(), replay() and step_adjoint() of alif_math.h as the functions
// of neuron.h. model_kernels.h instantiates them for each model.
#pragma once
#include "../../lsnn_ext/codegen/neuron.h"
#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// Lanes [n, n + lanes) of Packed::coefficients.
template <class T> LSNN_INLINE Coefs<Vec<T>> load_coefficients(const T* coefficients, int64_t n) {
  const T* k = coefficients + n * packed_coefficients;
  auto row = [&](int i) LSNN_LAMBDA { return load(k + i * Vec<T>::lanes); };
  return {row(ALPHA),        row(KAPPA),     row(RHO),   row(Q),      row(P),
          row(BETA),         row(ETA),       row(THETA), row(SIGMA),  row(WIDTH),
          row(R_),           row(DAMPENING), row(N_REF), row(CUTOFF), row(INVERSE_KAPPA),
          row(INVERSE_WIDTH)};
}

using neuron::AdjointRows, neuron::ReplayRow, neuron::ReplaySteps, neuron::Rows, neuron::Spikes,
    neuron::SpikesOfItems, neuron::StepRow;

template <class T> LSNN_INLINE Vec<T> load_spikes(const Spikes<T>& z, int64_t n) {
  return z.numbers ? load_n(z.numbers + n, z.numbers_end - n)
                   : select(get_bits<T>(z.bits, n), Vec<T>(1), Vec<T>(0));
}
template <class T> LSNN_INLINE Spikes<T> spikes_of_item(const SpikesOfItems<T>& z, int64_t b) {
  return {z.first.bits ? z.first.bits + b * z.bits_stride : nullptr,
          z.first.numbers ? z.first.numbers + b * z.numbers_stride : nullptr, z.first.numbers_end};
}

// The states of a model, [NP] each; i and r are not read where the model has none.
template <class T> struct CarriedRows {
  T *v, *a, *i, *r;
  LSNN_METHOD CarriedRows(const Rows<T>& rows)
      : v(rows.first),
        a(v + rows.stride),
        i(a + rows.stride),
        r(i + rows.stride) {}
};

// at: index of lanes [n, n + L) of an item
template <class T>
LSNN_INLINE Carry<Vec<std::remove_const_t<T>>> load_carry(const CarriedRows<T>& rows, bool has_i,
                                                          bool has_r, Vec<std::remove_const_t<T>> z,
                                                          int64_t at) {
  using V = Vec<std::remove_const_t<T>>;
  return {load(rows.v + at), load(rows.a + at), has_i ? load(rows.i + at) : V(0),
          has_r ? load(rows.r + at) : V(0), z};
}
template <class T> LSNN_INLINE void store_carry(const CarriedRows<T>& rows, bool has_i, bool has_r,
                                                const Carry<Vec<T>>& carry, int64_t n) {
  store(rows.v + n, carry.v);
  store(rows.a + n, carry.a);
  if (has_i) store(rows.i + n, carry.i);
  if (has_r) store(rows.r + n, carry.r);
}

// ----------------------------------------------------------------------------------------- forward
// settings: GeneralSpec, here and below.
template <class T, class Spec>
LSNN_LOCAL void step_row(const void* settings, const StepRow<T>& given) {
  using V = Vec<T>;
  // Local copies, as stores through pointers may alias references.
  const Spec spec = spec_of<Spec>(*(const GeneralSpec*)settings);
  const StepRow<T> row = given;
  const CarriedRows<T> carried(row.states);
  const bool write_i = spec.synapse || row.is_last;
  T* const* const traces = row.traces;
  for (int64_t n = row.n0; n < row.n1; n += V::lanes) {
    const Coefs<V> k = load_coefficients(row.coefficients, n);
    Carry<V> carry =
        load_carry(carried, spec.synapse, spec.refractory, load_spikes(row.before, n), n);
    const Stepped<V> out = step(spec, k, load(row.c.first + n), carry);
    store_carry(carried, write_i, spec.refractory, carry, n);
    if (spec.smooth) store(row.z_numbers + n, carry.z);
    if (row.bits) put_bits<T>(row.bits, n, to_bits(out.fired));
    if (row.saved.first) store(row.saved.first + n, out.y);
    if (row.z) store(row.z + n, carry.z);
    if (!traces) continue;
    if (traces[0]) store_n(traces[0] + n, carry.v, row.N - n);
    if (traces[1]) store_n(traces[1] + n, carry.a, row.N - n);
    if (traces[2]) store_n(traces[2] + n, out.A, row.N - n);
  }
}

// ------------------------------------------------------------------------------------------ replay
template <class T, class Spec>
LSNN_LOCAL void replay_steps(const void* settings, const ReplaySteps<T>& given) {
  using V = Vec<T>;
  const Spec spec = spec_of<Spec>(*(const GeneralSpec*)settings);
  const ReplaySteps<T> rows = given;
  const CarriedRows<const T> read(rows.read);
  const CarriedRows<T> left(rows.left);
  const T* const saved = rows.saved.first;
  const bfloat16* const saved_bf16 = (const bfloat16*)rows.saved_bf16;
  const bool has_i = spec.want >> SIGMA & 1;
  for (int64_t n = rows.n0; n < rows.n1; n += V::lanes) {
    const Coefs<V> k = load_coefficients(rows.coefficients, n);
    Carry<V> carry = load_carry(read, has_i, spec.refractory, load_spikes(rows.before, n), n);
    Spikes<T> after = rows.after;
    int64_t t = 0;
    auto next = [&]() LSNN_LAMBDA {
      t++;
      after.bits += rows.bits_stride;
      if (after.numbers) after.numbers += rows.numbers_stride;
    };
    if (spikes_suffice(spec))
      for (; t < rows.steps - 1; next())
        replay_spikes(spec, k, load_spikes(after, n), get_bits<T>(after.bits, n), carry);
    for (; t < rows.steps; next()) {
      V y;
      if constexpr (sizeof(T) == 4)
        y = saved_bf16 ? load_n(saved_bf16 + t * rows.saved_stride + n, rows.N - n)
                       : load_n(saved + t * rows.saved_stride + n, rows.N - n);
      else y = load_n(saved + t * rows.saved_stride + n, rows.N - n);
      replay(spec, k, y, load_spikes(after, n), get_bits<T>(after.bits, n), carry);
    }
    store_carry(left, has_i, spec.refractory, carry, n);
  }
}

// One step. Returns the number of active neurons.
template <class T, class Spec>
LSNN_LOCAL int64_t replay_row(const void* settings, const ReplayRow<T>& given) {
  using V = Vec<T>;
  constexpr int L = V::lanes;
  const Spec spec = spec_of<Spec>(*(const GeneralSpec*)settings);
  const ReplayRow<T> row = given;
  const CarriedRows<const T> read(row.read);
  const CarriedRows<T> written(row.left);
  const bool has_i = spec.want >> SIGMA & 1, choose = can_be_inactive(spec);
  int64_t n_active = 0;
  for (int64_t n = row.n0; n < row.n1; n += L) {
    const int64_t left = row.N - n;
    const Coefs<V> k = load_coefficients(row.coefficients, n);
    Carry<V> carry = load_carry(read, has_i, spec.refractory, load_spikes(row.before, n), n);
    const VecMask<T> blocked =
        replay(spec, k, load_n(row.saved.first + n, left), load_spikes(row.after, n),
               get_bits<T>(row.after.bits, n), carry);
    store_carry(written, has_i, spec.refractory, carry, n);
    if (!choose) continue;
    const unsigned lanes =
        ~to_bits(blocked) & (left < L ? (1u << left) - 1 : unsigned((uint64_t(1) << L) - 1));
    row.active[n / 16 * max_items] |= (uint16_t)(lanes << n % 16);
    n_active += __builtin_popcount(lanes);
  }
  return n_active;
}

// ----------------------------------------------------------------------------------------- adjoint
template <class F> LSNN_INLINE Coefs<F> uniform(F x) {
  return {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

// Coefficients whose gradients are usually wanted together.
inline constexpr unsigned membrane_group = 1 << ALPHA | 1 << KAPPA,
                          adaptation_group = 1 << RHO | 1 << Q,
                          threshold_group = 1 << BETA | 1 << THETA,
                          spike_group = 1 << WIDTH | 1 << R_,
                          term_group = 1 << P | 1 << ETA | 1 << SIGMA;

// The inner loop runs over items, so that coefficients and their sums stay in registers.
template <class T, class Spec>
LSNN_LOCAL void adjoint_rows(const void* settings, const AdjointRows<T>& given) {
  using V = Vec<T>;
  const Spec spec = spec_of<Spec>(*(const GeneralSpec*)settings);
  const AdjointRows<T> rows = given;
  const CarriedRows<const T> read(rows.read);
  const CarriedRows<T> d_read(rows.d_states);
  const T* const y_rows = rows.saved.first;
  T* const dc_rows = rows.dc.first;
  T* const gx = rows.gx.first;
  const T* const* const g_traces = rows.g_traces;
  const int64_t NP = rows.NP, N = rows.N;
  // The gradient of i is 0 for items that have ended.
  const bool has_i = spec.want >> SIGMA & 1, read_di = spec.synapse || rows.is_last,
             write_di = read_di || rows.is_first;
  // -0 is the neutral element, so the compiler removes the addition; +0 would change -0
  const Coefs<V> none = uniform(V(T(-0.0)));
  for (int64_t n = rows.n0; n < rows.n1; n += V::lanes) {
    const int64_t left = N - n;
    const Coefs<V> k = load_coefficients(rows.coefficients, n);
    Coefs<V> sums = {};
    for (int64_t b = 0; b < rows.items; b++) {
      const int64_t at = b * NP + n, at_z = b * rows.dz_stride + n, at_N = b * N + n;
      const int64_t at_y = b * rows.saved_items + n;
      const Spikes<T> z1 = spikes_of_item(rows.before, b), z = spikes_of_item(rows.after, b);
      Carry<V> carry;
      if (rows.saved_before) {
        prefetch(rows.saved_ahead + at_y);
        carry = {V(0), V(0), V(0), V(0), load_spikes(spikes_of_item(rows.before_that, b), n)};
        replay(spec, k, load_n(rows.saved_before + at_y, left), load_spikes(z1, n),
               get_bits<T>(z1.bits, n), carry);
      } else {
        carry = load_carry(read, has_i, spec.refractory, load_spikes(z1, n), at);
      }
      Adjoint<V> d = {load(d_read.v + at), load(d_read.a + at),
                      read_di ? load(d_read.i + at) : V(0), load(rows.dz + at_z)};
      V Ab = V(0);
      if (rows.gz) {
        const int64_t at_g = b * rows.gz_stride_b + n * rows.gz_stride_n;
        if (rows.gz_next) prefetch(rows.gz_next + at_g);
        d.z = d.z + (rows.gz_stride_n ? load_n(rows.gz + at_g, left) : V(rows.gz[at_g]));
      }
      if (g_traces) {
        if (g_traces[0]) d.v = d.v + load_n(g_traces[0] + at_N, left);
        if (g_traces[1]) d.a = d.a + load_n(g_traces[1] + at_N, left);
        if (g_traces[2]) Ab = load_n(g_traces[2] + at_N, left);
      }
      Coefs<V> g = none;
      const V y = load_n(y_rows + at_y, left);
      const V dc = step_adjoint(spec, k, carry, y, load_spikes(z, n), Ab, d, g);
      store(d_read.v + at, d.v);
      store(d_read.a + at, d.a);
      store(rows.dz + at_z, d.z);
      store(dc_rows + at_z, dc);
      if (write_di) store(d_read.i + at, d.i);
      if (gx) store_n(gx + b * rows.gx_items + n, dc, left);
      // In groups, as a branch costs about the same as a sum.
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
