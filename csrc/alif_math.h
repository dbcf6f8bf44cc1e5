// One step of the recurrence and its adjoint, side by side; numbers in brackets are the equations
// of alif.h.
//
// F is a number (CUDA, emulator) or a vector of numbers (CPU); Spec is one of spec.h. The forward
// statements use no fused multiply-add (the build turns contraction off), so that spikes agree
// everywhere.
#pragma once
#include <iterator>

#include "platform.h"
#include "spec.h"
#include "surrogate.h"

namespace lsnn {

template <class F> struct Coefs {
  F alpha, kappa, rho, q, p, beta, eta, theta, sigma, width, R;
  F dampening, n_ref, cutoff;
  F inverse_kappa, inverse_width;  // for gradients: a division takes as long as five products
};

// carried from step to step
template <class F> struct Carry { F v, a, i, r, z; };

template <class F> using Mask = decltype(F(0) > F(0));

// Choices are chains of ifs whose last case has no condition. A further value needs a statement in:
static_assert(std::size(test_words) == 2, "step, replay, step_adjoint");
static_assert(std::size(scale_words) == 2, "scale, unless_vanishing, over");
static_assert(std::size(reset_words) == 3, "reset, reset_adjoint");
static_assert(std::size(when_words) == 2, "membrane, replay, advance, step_adjoint");
static_assert(std::size(drive_words) == 3, "drive, step_adjoint, spikes_suffice");
static_assert(std::size(detach_words) == 4,
              "reset_adjoint, step_adjoint, and the kernels' products with the weights");

// ------------------------------------------------------------------------- pieces of the equations
// s of (7)
template <class Spec, class F> LSNN_INLINE F scale(const Spec& spec, const Coefs<F>& k, F A) {
  return spec.model.scale == Scale::width_A ? k.width * A : k.width;
}

// x, or 0 where s of (7) is zero or subnormal, for example where A is 0: s cannot divide. There m
// counts as 0, and no gradient passes the test. A width that does not scale with A is normal.
template <class Spec, class F> LSNN_INLINE F unless_vanishing(const Spec& spec, F s, F x) {
  return spec.model.scale == Scale::width_A ? select(abs_(s) < least_normal(s), F(0), x) : x;
}

// 1 / s of (7), or 0 where s vanishes.
template <class Spec, class F> LSNN_INLINE F inverse_scale(const Spec& spec, const Coefs<F>& k,
                                                           F s) {
  if (spec.model.scale == Scale::width) return k.inverse_width;
  return unless_vanishing(spec, s, reciprocal_(s));
}

// [m > 0] of (7) without the division: the sign of n - A, flipped where s < 0 (a threshold below
// zero).
template <class Spec, class F> LSNN_INLINE Mask<F> over(const Spec& spec, F n, F A) {
  F d = n - A;
  if (spec.model.scale == Scale::width_A) d = select(A < F(0), -d, d);
  return spec.model.ge ? d >= F(0) : d > F(0);
}

template <class Spec, class F> LSNN_INLINE F reset(const Spec& spec, const Coefs<F>& k, F y, F z,
                                                   F A) {
  if (spec.model.reset == Reset::minus_A) return y - z * A;
  if (spec.model.reset == Reset::minus_R) return y - z * k.R;
  return (F(1) - z) * y + z * k.R;
}

template <class Spec, class F> LSNN_INLINE F spike(const Spec& spec, const Coefs<F>& k, F n, F A) {
  if (spec.smooth) {
    const F s = scale(spec, k, A);
    return k.dampening * psi_integral(spec.surrogate, unless_vanishing(spec, s, (n - A) / s));
  }
  return select(over(spec, n, A), F(1), F(0));
}

// e' of (3)
template <class Spec, class F> LSNN_INLINE F drive(const Spec& spec, const Coefs<F>& k,
                                                   const Carry<F>& s) {
  if (spec.model.drive == Drive::cross) return spike(spec, k, s.v, k.theta + k.beta * s.a);
  if (spec.model.drive == Drive::above) {
    const F d = s.v - k.theta;
    return select(spec.model.ge ? d >= F(0) : d > F(0), F(1), F(0));
  }
  return s.z;
}

template <class Spec, class F> LSNN_INLINE F adaptation(const Spec& spec, const Coefs<F>& k,
                                                        const Carry<F>& s) {
  F a = k.rho * s.a + k.q * drive(spec, k, s);  // (3)
  if (spec.coupling) a = a + k.p * s.v;
  return a;
}

template <class Spec, class F> LSNN_INLINE void count_refractory(const Spec& spec,
                                                                 const Coefs<F>& k, Mask<F> fired,
                                                                 Carry<F>& s) {
  if (spec.refractory) s.r = select(fired, k.n_ref, max_(s.r - F(1), F(0)));  // (9)
}

// (8), (9): the state after a step, from its y, A and spike. Shared by the forward pass and the
// replay.
template <class Spec, class F>
LSNN_INLINE void advance(const Spec& spec, const Coefs<F>& k, F u, F a, F A, F i, F z,
                         Mask<F> fired, Carry<F>& s) {
  s.v = spec.model.when == When::now ? reset(spec, k, u, z, A) : u;  // (8)
  count_refractory(spec, k, fired, s);  // (9)
  s.a = a;
  s.i = i;
  s.z = z;
}

// ----------------------------------------------------------------------------------------- forward
// The parts of a step. Where the old membrane is tested, (3), (4) and (7) need no current, so a
// kernel may compute them before (1), with the same results.
template <class F> struct Threshold { F a, A; };
template <class Spec, class F> LSNN_INLINE Threshold<F> threshold(const Spec& spec,
                                                                  const Coefs<F>& k,
                                                                  const Carry<F>& s) {
  const F a = adaptation(spec, k, s);  // (3)
  return {a, k.theta + k.beta * a};    // (4)
}

// i of (2), y of (5), u of (6)
template <class F> struct Membrane { F i, y, u; };
// c: the sum of (1).
template <class Spec, class F>
LSNN_INLINE Membrane<F> membrane(const Spec& spec, const Coefs<F>& k, F c, const Threshold<F>& at,
                                 const Carry<F>& s) {
  const F i = spec.synapse ? k.sigma * s.i + c : c;  // (2)
  const F drive_v = spec.current ? i - k.eta * at.a : i;
  const F y = k.alpha * s.v + k.kappa * drive_v;  // (5)
  const F u = spec.model.when == When::next ? reset(spec, k, y, s.z, at.A) : y;  // (6)
  return {i, y, u};
}

template <class F> struct Fired {
  F z;
  Mask<F> fired;
};
// (7); n: the membrane that is tested
template <class Spec, class F> LSNN_INLINE Fired<F> fire(const Spec& spec, const Coefs<F>& k, F n,
                                                         F A, const Carry<F>& s) {
  Mask<F> fired = over(spec, n, A);
  F z = spec.smooth ? spike(spec, k, n, A) : select(fired, F(1), F(0));
  if (spec.refractory) {
    const Mask<F> free = s.r <= F(0);
    fired = fired & free;
    z = select(free, z, F(0));
  }
  return {z, fired};
}

template <class F> struct Stepped {
  F y, A;
  Mask<F> fired;
};

// c: the sum of (1). s: carried in, carried out; s.z becomes the spike.
template <class Spec, class F> LSNN_INLINE Stepped<F> step(const Spec& spec, const Coefs<F>& k, F c,
                                                           Carry<F>& s) {
  const Threshold<F> at = threshold(spec, k, s);
  const Membrane<F> m = membrane(spec, k, c, at, s);
  const Fired<F> out = fire(spec, k, spec.model.test == Test::old_v ? s.v : m.u, at.A, s);
  advance(spec, k, m.u, at.a, at.A, m.i, out.z, out.fired, s);  // (8), (9)
  return {m.y, at.A, out.fired};
}

// ------------------------------------------------------------------------------------------ replay
// Recomputes a step from its saved y and spike without (1) and (2): i follows from (5). Returns the
// inactive neurons, whose spikes pass no gradient: psi is 0 or the neuron is refractory.
template <class Spec, class F>
LSNN_INLINE Mask<F> replay(const Spec& spec, const Coefs<F>& k, F y, F z, Mask<F> fired,
                           Carry<F>& s) {
  const F a = adaptation(spec, k, s);  // (3)
  const F A = k.theta + k.beta * a;  // (4)
  const F i = (spec.want >> SIGMA & 1) ? (y - k.alpha * s.v) * k.inverse_kappa + k.eta * a : F(0);
  const F u = spec.model.when == When::next ? reset(spec, k, y, s.z, A) : y;  // (6)
  const F n = spec.model.test == Test::old_v ? s.v : u;
  Mask<F> blocked =
      psi_vanishes(spec.surrogate, n - A, scale(spec, k, A), spec.cut, k.cutoff);  // (7)
  if (spec.refractory) blocked = blocked | (s.r > F(0));
  advance(spec, k, u, a, A, i, z, fired, s);
  return blocked;
}

// Whether the adjoint of a step needs only v and spikes of the step before, and v follows from its
// y: A is constant, no wanted gradient reads a or i, and active neurons need not be known. Then
// nothing is replayed before the adjoint.
inline constexpr unsigned reads_a_or_i = 1 << RHO | 1 << BETA | 1 << ETA | 1 << SIGMA;
LSNN_INLINE bool v_suffices(const GeneralSpec& spec, bool beta_is_zero) {
  return beta_is_zero && !spec.current && !(spec.want & reads_a_or_i) && !can_be_inactive(spec);
}

// Whether a and r follow from spikes only, and v from its last step. Then only the last step before
// a wanted state is replayed, and the others reduce to this:
template <class Spec> LSNN_INLINE bool spikes_suffice(const Spec& spec) {
  return spec.model.drive == Drive::spike && !spec.coupling && !(spec.want >> SIGMA & 1);
}
template <class Spec, class F> LSNN_INLINE void replay_spikes(const Spec& spec, const Coefs<F>& k,
                                                              F z, Mask<F> fired, Carry<F>& s) {
  s.a = adaptation(spec, k, s);  // (3)
  count_refractory(spec, k, fired, s);  // (9)
  s.z = z;
}

// v that a step reads, from y, a and the spike read by the step before.
template <class Spec, class F> LSNN_INLINE F membrane_before(const Spec& spec, const Coefs<F>& k,
                                                             F y, F a, F z) {
  return reset(spec, k, y, z, k.theta + k.beta * a);
}

// ----------------------------------------------------------------------------------------- adjoint
// In: dL/d of the state after the step (v, a, i; z: all that reaches the spike). Out: dL/d of the
// state before it (z: the local part).
template <class F> struct Adjoint { F v, a, i, z; };

// o = reset(y, z): the adjoints of y (returned), z and A from that of o.
template <class Spec, class F>
LSNN_INLINE F reset_adjoint(const Spec& spec, const Coefs<F>& k, F ob, F y, F z, F A, F& zb, F& Ab,
                            Coefs<F>& g) {
  const bool live = !(spec.model.detach & detach_reset);
  if (spec.model.reset == Reset::to_R) {  // o = (1 - z) y + z R
    g.R = g.R + ob * z;
    if (live) zb = zb + ob * (k.R - y);
    return ob * (F(1) - z);
  }
  if (spec.model.reset == Reset::minus_R) {  // o = y - z R
    g.R = g.R - ob * z;
    if (live) zb = zb - ob * k.R;
    return ob;
  }
  Ab = Ab - ob * z;  // o = y - z A
  if (live) zb = zb - ob * A;
  return ob;
}

// The derivative of spike((n - A) / s) by m, and what else its adjoint needs. It depends on no
// gradient, so a kernel may compute it before dL/dz is known.
template <class F> struct Slope { F psi, m, inverse; };  // dampening psi, m = (n - A) / s, 1 / s
template <class Spec, class F> LSNN_INLINE Slope<F> slope(const Spec& spec, const Coefs<F>& k, F n,
                                                          F A) {
  const F s = scale(spec, k, A);
  const F inverse = inverse_scale(spec, k, s);
  const F m = (n - A) * inverse;
  F psi = psi_shape(spec.surrogate, m);
  if (spec.cut) psi = select(psi_vanishes(spec.surrogate, n - A, s, spec.cut, k.cutoff), F(0), psi);
  return {k.dampening * psi, m, inverse};
}

// The adjoints of n (returned) and A from that of z. Where s vanishes no gradient passes.
template <class Spec, class F>
LSNN_INLINE F spike_adjoint(const Spec& spec, const Coefs<F>& k, F zb, const Slope<F>& at, F& Ab,
                            Coefs<F>& g) {
  const F mb = zb * at.psi;
  const F nb = mb * at.inverse;
  g.width = g.width - mb * at.m * k.inverse_width;  // s = width | width A
  Ab = Ab - (spec.model.scale == Scale::width_A ? nb * (F(1) + k.width * at.m) : nb);
  return nb;
}

// dL/dc by (5) and (2), from dL/dy and dL/di. Where the old membrane is tested and a subtracting
// reset acts in the next step, dL/dy is dL/dv: then a kernel may compute dL/dc before dL/dz of the
// step is known.
template <class F> LSNN_INLINE F current_adjoint(const Coefs<F>& k, F yb, F ib) {
  return ib + k.kappa * yb;
}

// The slope of the test where the old membrane is tested.
template <class Spec, class F>
LSNN_INLINE Slope<F> slope_of_step(const Spec& spec, const Coefs<F>& k, const Carry<F>& before) {
  return slope(spec, k, before.v, threshold(spec, k, before).A);
}

// before: the state before the step. y, z: saved by it. Ab: dL/dA from outside. g: gradients of the
// coefficients are added. at(n, A): the slope of the test. Returns dL/dc of (1), which is dL/dx.
template <class Spec, class F, class SlopeAt>
LSNN_INLINE F step_adjoint(const Spec& spec, const Coefs<F>& k, const Carry<F>& before, F y, F z,
                           F Ab, Adjoint<F>& d, Coefs<F>& g, const SlopeAt& at) {
  const F e = drive(spec, k, before);
  const F a = adaptation(spec, k, before);
  const F A = k.theta + k.beta * a;
  const F u = spec.model.when == When::next ? reset(spec, k, y, before.z, A) : y;

  // (8) v = reset(u, z) when = now, else u
  F ub = spec.model.when == When::now ? reset_adjoint(spec, k, d.v, u, z, A, d.z, Ab, g) : d.v;
  // (7) z = [(n - A) / s > 0], 0 while r' > 0
  F zb = d.z, A_of_test = F(0), v1b = F(0), z1b = F(0);
  if (spec.refractory) zb = select(before.r <= F(0), zb, F(0));
  const F n = spec.model.test == Test::old_v ? before.v : u;
  const F nb = spike_adjoint(spec, k, zb, at(n, A), A_of_test, g);
  if (!(spec.model.detach & detach_thr)) Ab = Ab + A_of_test;
  if (spec.model.test == Test::old_v) v1b = nb;
  else ub = ub + nb;
  // (6) u = reset(y, z') when = next, else y
  const F yb =
      spec.model.when == When::next ? reset_adjoint(spec, k, ub, y, before.z, A, z1b, Ab, g) : ub;
  // (5) y = alpha v' + kappa (i - eta a)
  g.alpha = g.alpha + yb * before.v;
  if (spec.want >> KAPPA & 1) g.kappa = g.kappa + yb * ((y - k.alpha * before.v) * k.inverse_kappa);
  const F drive_b = k.kappa * yb;
  v1b = v1b + k.alpha * yb;
  const F ib = current_adjoint(k, yb, d.i);
  F ab = d.a;
  if (spec.current) ab = ab - k.eta * drive_b;
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
  if (spec.coupling) v1b = v1b + k.p * ab;
  if (!(spec.model.detach & detach_adapt)) {
    if (spec.model.drive == Drive::spike) z1b = z1b + k.q * ab;
    if (spec.model.drive == Drive::cross) {  // e' = spike((v' - A') / s'), A' = theta + beta a'
      F A1b = F(0);
      const Slope<F> of_drive = slope(spec, k, before.v, k.theta + k.beta * before.a);
      v1b = v1b + spike_adjoint(spec, k, k.q * ab, of_drive, A1b, g);
      g.theta = g.theta + A1b;
      g.beta = g.beta + A1b * before.a;
      a1b = a1b + k.beta * A1b;
    }
  }
  // (2) i = sigma i' + c
  g.sigma = g.sigma + ib * before.i;
  d = {v1b, a1b, spec.synapse ? k.sigma * ib : F(0), z1b};
  return ib;
}
template <class Spec, class F>
LSNN_INLINE F step_adjoint(const Spec& spec, const Coefs<F>& k, const Carry<F>& before, F y, F z,
                           F Ab, Adjoint<F>& d, Coefs<F>& g) {
  return step_adjoint(spec, k, before, y, z, Ab, d, g,
                      [&](F n, F A) { return slope(spec, k, n, A); });
}

// ----------------------------------------------------------------------------------------- readout
// p = k p' + (1 - k) x, the leaky integrator of the readout, and its adjoint. Number: element type
// of F.
template <class F> struct Leak {
  F k, rest;

  template <class Number> LSNN_METHOD static Leak of(double k, Number) {
    return {F(Number(k)), F(Number(1 - k))};
  }
};
template <class F> LSNN_INLINE F integrate(const Leak<F>& leak, F p, F x) {
  return leak.k * p + leak.rest * x;
}
// From dL/dp of a step, later steps included: dL/dx, returned, and dL/dp'.
template <class F> LSNN_INLINE F integrate_adjoint(const Leak<F>& leak, F& pb) {
  const F xb = leak.rest * pb;
  pb = leak.k * pb;
  return xb;
}

}  // namespace lsnn
