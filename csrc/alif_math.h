// One step of the recurrence and its adjoint, side by side; numbers in brackets are the equations of alif.h.
//
// F is a number (CUDA, emulator) or a vector of numbers (CPU). Model says what of the layer is known while compiling: its
// members are constants for a row that has kernels of its own, variables for all the others; the text is the same.
// The forward statements use no fused multiply-add (the build turns contraction off), so that spikes agree everywhere.
#pragma once
#include <iterator>

#include "alif.h"
#include "platform.h"
#include "surrogate.h"

namespace lsnn {

// Any layer: everything is decided at run time.
struct AnyModel {
  Row row;
  Surrogate surrogate;
  bool smooth;
  bool synapse, coupling, current;  // sigma, p, eta may differ from 0
  bool refractory;
  unsigned want;                    // coefficients whose gradient is asked for
};

// By value: the address of a name differs between translation units where equal strings are not merged.
LSNN_INLINE bool same(const Row& a, const Row& b) {
  return a.test == b.test && a.ge == b.ge && a.scale == b.scale && a.reset == b.reset && a.when == b.when && a.drive == b.drive &&
         a.stop == b.stop;
}

// The paper's network, fast: row `lsnn` with the triangle, no synapse, fixed coefficients.
struct PaperModel {
  static constexpr Row row = rows[0];
  static constexpr Surrogate surrogate = Surrogate::triangle;
  static constexpr bool smooth = false, synapse = false, coupling = false, current = false;
  bool refractory;
  static constexpr unsigned want = 0;

  static bool fits(const AnyModel& m) {
    return same(m.row, row) && m.surrogate == surrogate && !m.smooth && !m.synapse && !m.coupling && !m.current && !m.want;
  }
};

template <class F> struct Coefs { F alpha, kappa, rho, q, p, beta, eta, theta, sigma, width, R, dampening, n_ref; };

template <class F> struct Carry { F v, a, i, r, z; };  // what a step reads of the step before, and leaves to the next

template <class F> using Mask = decltype(F(0) > F(0));

// A choice is made by ifs, of which one has no condition. Another value needs a statement of its own in:
static_assert(std::size(test_words) == 2, "step, replay, step_adjoint");
static_assert(std::size(scale_words) == 2, "scale, unless_vanishing, over");
static_assert(std::size(reset_words) == 3, "reset, reset_adjoint");
static_assert(std::size(when_words) == 2, "step, replay, advance, step_adjoint");
static_assert(std::size(drive_words) == 3, "drive, step_adjoint, spikes_suffice");
static_assert(std::size(stop_words) == 4, "reset_adjoint, step_adjoint, and the kernels' products with the weights");

// ------------------------------------------------------------------------------------------------ pieces of the equations
template <class Model, class F> LSNN_INLINE F scale(const Model& model, const Coefs<F>& k, F A) {  // s of (7)
  return model.row.scale == Scale::width_A ? k.width * A : k.width;
}

// x, or 0 where s of (7) is no normal number, as it is where A is 0: nothing can be divided by it. There m counts as 0, and no
// gradient passes the test. A width of its own is a normal number.
template <class Model, class F> LSNN_INLINE F unless_vanishing(const Model& model, F s, F x) {
  return model.row.scale == Scale::width_A ? select(abs_(s) < least_normal(s), F(0), x) : x;
}

// [m > 0] of (7) without the division: the sign of n - A, turned round where s is negative (a threshold below zero).
template <class Model, class F> LSNN_INLINE Mask<F> over(const Model& model, F n, F A) {
  F d = n - A;
  if (model.row.scale == Scale::width_A) d = select(A < F(0), -d, d);
  return model.row.ge ? d >= F(0) : d > F(0);
}

template <class Model, class F> LSNN_INLINE F reset(const Model& model, const Coefs<F>& k, F y, F z, F A) {
  if (model.row.reset == Reset::minus_A) return y - z * A;
  if (model.row.reset == Reset::minus_R) return y - z * k.R;
  return (F(1) - z) * y + z * k.R;
}

template <class Model, class F> LSNN_INLINE F spike(const Model& model, const Coefs<F>& k, F n, F A) {
  if (model.smooth) {
    const F s = scale(model, k, A);
    return k.dampening * psi_integral(model.surrogate, unless_vanishing(model, s, (n - A) / s));
  }
  return select(over(model, n, A), F(1), F(0));
}

template <class Model, class F> LSNN_INLINE F drive(const Model& model, const Coefs<F>& k, const Carry<F>& s) {  // e' of (3)
  if (model.row.drive == Drive::cross) return spike(model, k, s.v, k.theta + k.beta * s.a);
  if (model.row.drive == Drive::above) {
    const F d = s.v - k.theta;
    return select(model.row.ge ? d >= F(0) : d > F(0), F(1), F(0));
  }
  return s.z;
}

template <class Model, class F> LSNN_INLINE F adaptation(const Model& model, const Coefs<F>& k, const Carry<F>& s) {
  F a = k.rho * s.a + k.q * drive(model, k, s);  // (3)
  if (model.coupling) a = a + k.p * s.v;
  return a;
}

template <class Model, class F> LSNN_INLINE void count_refractory(const Model& model, const Coefs<F>& k, Mask<F> fired, Carry<F>& s) {
  if (model.refractory) s.r = select(fired, k.n_ref, max_(s.r - F(1), F(0)));           // (9)
}

// (8), (9): what y, A and the spike of a step leave to the next one. The forward pass and the replay share it.
template <class Model, class F>
LSNN_INLINE void advance(const Model& model, const Coefs<F>& k, F u, F a, F A, F i, F z, Mask<F> fired, Carry<F>& s) {
  s.v = model.row.when == When::now ? reset(model, k, u, z, A) : u;                     // (8)
  count_refractory(model, k, fired, s);                                                 // (9)
  s.a = a;
  s.i = i;
  s.z = z;
}

// ---------------------------------------------------------------------------------------------------------------- forward
template <class F> struct Stepped {
  F y, A;
  Mask<F> fired;
};

// c: the sum of (1). s: carried in, carried out; s.z becomes the spike.
template <class Model, class F> LSNN_INLINE Stepped<F> step(const Model& model, const Coefs<F>& k, F c, Carry<F>& s) {
  const F i = model.synapse ? k.sigma * s.i + c : c;                                    // (2)
  const F a = adaptation(model, k, s);                                                  // (3)
  const F A = k.theta + k.beta * a;                                                     // (4)
  const F drive_v = model.current ? i - k.eta * a : i;
  const F y = k.alpha * s.v + k.kappa * drive_v;                                        // (5)
  const F u = model.row.when == When::next ? reset(model, k, y, s.z, A) : y;            // (6)
  const F n = model.row.test == Test::old_v ? s.v : u;
  Mask<F> fired = over(model, n, A);                                                    // (7)
  F z = model.smooth ? spike(model, k, n, A) : select(fired, F(1), F(0));
  if (model.refractory) {
    const Mask<F> free = s.r <= F(0);
    fired = fired & free;
    z = select(free, z, F(0));
  }
  advance(model, k, u, a, A, i, z, fired, s);                                           // (8), (9)
  return {y, A, fired};
}

// ----------------------------------------------------------------------------------------------------------------- replay
// The same step again from its saved y and spike: (1) and (2) are not needed, i follows from (5). Returns where no
// gradient can pass the spike, so that dL/dz is of no use: psi is 0 or the neuron is refractory.
template <class Model, class F>
LSNN_INLINE Mask<F> replay(const Model& model, const Coefs<F>& k, F y, F z, Mask<F> fired, Carry<F>& s) {
  const F a = adaptation(model, k, s);                                                  // (3)
  const F A = k.theta + k.beta * a;                                                     // (4)
  const F i = (model.want >> SIGMA & 1) ? (y - k.alpha * s.v) / k.kappa + k.eta * a : F(0);
  const F u = model.row.when == When::next ? reset(model, k, y, s.z, A) : y;            // (6)
  const F n = model.row.test == Test::old_v ? s.v : u;
  Mask<F> blocked = psi_vanishes(model.surrogate, n - A, scale(model, k, A));           // (7)
  if (model.refractory) blocked = blocked | (s.r > F(0));
  advance(model, k, u, a, A, i, z, fired, s);
  return blocked;
}

// Whether a and r follow from the spikes alone, and v from its last step; then only the last step before a state that is
// wanted has to be replayed, and the others come to this:
template <class Model> LSNN_INLINE bool spikes_suffice(const Model& model) {
  return model.row.drive == Drive::spike && !model.coupling && !(model.want >> SIGMA & 1);
}
template <class Model, class F> LSNN_INLINE void replay_spikes(const Model& model, const Coefs<F>& k, F z, Mask<F> fired, Carry<F>& s) {
  s.a = adaptation(model, k, s);                                                        // (3)
  count_refractory(model, k, fired, s);                                                 // (9)
  s.z = z;
}

// ---------------------------------------------------------------------------------------------------------------- adjoint
// dL/d of what the step leaves (v, a, i; z: all that reaches the spike) turns into dL/d of what it read (z: its local part).
template <class F> struct Adjoint { F v, a, i, z; };

// o = reset(y, z): the adjoints of y (returned), z and A from that of o.
template <class Model, class F>
LSNN_INLINE F reset_adjoint(const Model& model, const Coefs<F>& k, F ob, F y, F z, F A, F& zb, F& Ab, Coefs<F>& g) {
  const bool live = !(model.row.stop & stop_reset);
  if (model.row.reset == Reset::to_R) {                     // o = (1 - z) y + z R
    g.R = g.R + ob * z;
    if (live) zb = zb + ob * (k.R - y);
    return ob * (F(1) - z);
  }
  if (model.row.reset == Reset::minus_R) {                  // o = y - z R
    g.R = g.R - ob * z;
    if (live) zb = zb - ob * k.R;
    return ob;
  }
  Ab = Ab - ob * z;                                         // o = y - z A
  if (live) zb = zb - ob * A;
  return ob;
}

// z = spike((n - A) / s): the adjoints of n (returned) and A from that of z. Where s vanishes no gradient passes.
template <class Model, class F>
LSNN_INLINE F spike_adjoint(const Model& model, const Coefs<F>& k, F zb, F n, F A, F& Ab, Coefs<F>& g) {
  const F s = scale(model, k, A);
  const F inverse = unless_vanishing(model, s, reciprocal_(s));
  const F m = (n - A) * inverse;                            // m = (n - A) / s
  const F mb = zb * (k.dampening * psi_shape(model.surrogate, m));
  const F nb = mb * inverse;
  g.width = g.width - mb * m / k.width;                     // s = width | width A
  Ab = Ab - (model.row.scale == Scale::width_A ? nb * (F(1) + k.width * m) : nb);
  return nb;
}

// before: what the step read. y, z: what it saved. Ab: dL/dA from outside. g: gradients of the coefficients are added.
// Returns dL/dc of (1), which is dL/dx.
template <class Model, class F>
LSNN_INLINE F step_adjoint(const Model& model, const Coefs<F>& k, const Carry<F>& before, F y, F z, F Ab, Adjoint<F>& d, Coefs<F>& g) {
  const F e = drive(model, k, before);
  const F a = adaptation(model, k, before);
  const F A = k.theta + k.beta * a;
  const F u = model.row.when == When::next ? reset(model, k, y, before.z, A) : y;

  // (8) v = reset(u, z) when = now, else u
  F ub = model.row.when == When::now ? reset_adjoint(model, k, d.v, u, z, A, d.z, Ab, g) : d.v;
  // (7) z = [(n - A) / s > 0], 0 while r' > 0
  F zb = d.z, A_of_test = F(0), v1b = F(0), z1b = F(0);
  if (model.refractory) zb = select(before.r <= F(0), zb, F(0));
  const F nb = spike_adjoint(model, k, zb, model.row.test == Test::old_v ? before.v : u, A, A_of_test, g);
  if (!(model.row.stop & stop_thr)) Ab = Ab + A_of_test;
  if (model.row.test == Test::old_v) v1b = nb;
  else ub = ub + nb;
  // (6) u = reset(y, z') when = next, else y
  const F yb = model.row.when == When::next ? reset_adjoint(model, k, ub, y, before.z, A, z1b, Ab, g) : ub;
  // (5) y = alpha v' + kappa (i - eta a)
  g.alpha = g.alpha + yb * before.v;
  if (model.want >> KAPPA & 1) g.kappa = g.kappa + yb * ((y - k.alpha * before.v) / k.kappa);
  const F drive_b = k.kappa * yb;
  v1b = v1b + k.alpha * yb;
  const F ib = d.i + drive_b;
  F ab = d.a;
  if (model.current) ab = ab - k.eta * drive_b;
  g.eta = g.eta - drive_b * a;
  // (4) A = theta + beta a
  g.theta = g.theta + Ab;
  g.beta = g.beta + Ab * a;
  ab = ab + k.beta * Ab;
  // (3) a = rho a' + q e' + p v'
  g.rho = g.rho + ab * before.a;
  g.q = g.q + ab * e;
  g.p = g.p + ab * before.v;
  F a1b = k.rho * ab;
  if (model.coupling) v1b = v1b + k.p * ab;
  if (!(model.row.stop & stop_adapt)) {
    if (model.row.drive == Drive::spike) z1b = z1b + k.q * ab;
    if (model.row.drive == Drive::cross) {                  // e' = spike((v' - A') / s'), A' = theta + beta a'
      F A1b = F(0);
      v1b = v1b + spike_adjoint(model, k, k.q * ab, before.v, k.theta + k.beta * before.a, A1b, g);
      g.theta = g.theta + A1b;
      g.beta = g.beta + A1b * before.a;
      a1b = a1b + k.beta * A1b;
    }
  }
  // (2) i = sigma i' + c
  g.sigma = g.sigma + ib * before.i;
  d = {v1b, a1b, model.synapse ? k.sigma * ib : F(0), z1b};
  return ib;
}

// ---------------------------------------------------------------------------------------------------------------- readout
// p = k p' + (1 - k) x, the leaky integrator behind the recurrence, and its adjoint. `Number` is what F is made of.
template <class F> struct Leak {
  F k, rest;

  template <class Number> LSNN_MEMBER static Leak of(double k, Number) { return {F(Number(k)), F(Number(1 - k))}; }
};
template <class F> LSNN_INLINE F integrate(const Leak<F>& leak, F p, F x) { return leak.k * p + leak.rest * x; }
// From dL/dp of a step, all that comes later included: dL/dx, returned, and dL/dp'.
template <class F> LSNN_INLINE F integrate_adjoint(const Leak<F>& leak, F& pb) {
  const F xb = leak.rest * pb;
  pb = leak.k * pb;
  return xb;
}

}  // namespace lsnn
