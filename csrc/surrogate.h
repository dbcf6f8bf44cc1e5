// The surrogates psi(m) of (7) before dampening, and their antiderivatives for the smooth spikes of
// gradient checks. F is a number or a vector of numbers; functions of the platform (select, abs_,
// exp_ ...) work on both. No switch has a default: a missing surrogate does not compile.
#pragma once
#include "dynamics.h"
#include "platform.h"

namespace lsnn {

template <class F> LSNN_INLINE F normal_density(F m) {
  return F(0.3989422804014327) * psi_exp_(F(-0.5) * m * m);
}
template <class F> LSNN_INLINE F normal_mass(F m) {
  return F(0.5) + F(0.5) * erf_(m * F(0.7071067811865476));
}

// The multi-gaussian of Yin et al.: a hill of weight 1.15 between two valleys of weight .15, six
// times as wide and a unit away from it on either side. The valleys together are
//   exp(-(m - 1)^2 / 72) + exp(-(m + 1)^2 / 72) = exp(-(m^2 + 1) / 72) (e + 1 / e), e = exp(m / 36)
// with two exponentials instead of three. Where m > 100 the first factor is 0.
template <class F> LSNN_INLINE F multi_gaussian(F m) {
  const F e = psi_exp_(min_(abs_(m), F(100)) * F(1.0 / 36));
  const F valleys = psi_exp_((m * m + F(1)) * F(-1.0 / 72)) * (e + reciprocal_(e));
  return F(1.15) * normal_density(m) - F(0.025 * 0.3989422804014327) * valleys;
}
// Its antiderivative.
template <class F> LSNN_INLINE F multi_gaussian_mass(F m) {
  const F sixth = F(1.0 / 6);
  return F(1.15) * normal_mass(m) -
         F(0.15) * (normal_mass((m - F(1)) * sixth) + normal_mass((m + F(1)) * sixth));
}

template <class F> LSNN_INLINE F psi_shape(Surrogate s, F m) {
  const F size = abs_(m), one = F(1);
  switch (s) {
    case Surrogate::triangle: return max_(one - size, F(0));
    case Surrogate::boxcar: return select((m > F(-0.5)) & (m <= F(0.5)), one, F(0));
    case Surrogate::fast_sigmoid: return one / fma_(size, size + F(2), one);  // of (1 + |m|)^2
    case Surrogate::arctan: return one / fma_(m, m, one);
    case Surrogate::sigmoid: {  // exp of a negative number only, so that no large m overflows
      const F e = psi_exp_(-size);
      return e / fma_(e, e + F(2), one);  // of (1 + e)^2
    }
    case Surrogate::exponential: return psi_exp_(-size);
    case Surrogate::gaussian: return normal_density(m);
    case Surrogate::multi_gaussian: break;
  }
  return multi_gaussian(m);
}

// True only where psi(d / s) is 0 or indistinguishable from 0; without the division. cut: psi
// counts as 0 where |d / s| >= cutoff.
template <class F>
LSNN_INLINE auto psi_vanishes(Surrogate surrogate, F d, F s, bool cut, F cutoff) {
  const F size = abs_(d);
  switch (surrogate) {
    case Surrogate::triangle: return size >= abs_(s);
    // at the edge the rounded m decides
    case Surrogate::boxcar: return size > F(0.50001) * abs_(s);
    case Surrogate::fast_sigmoid:
    case Surrogate::arctan:
    case Surrogate::sigmoid:
    case Surrogate::exponential:
    case Surrogate::gaussian:
    case Surrogate::multi_gaussian: break;
  }
  return cut ? size >= cutoff * abs_(s) : size < F(0);
}
inline constexpr bool has_bounded_support(Surrogate s) {
  return s == Surrogate::triangle || s == Surrogate::boxcar;
}

template <class F> LSNN_INLINE F psi_integral(Surrogate s, F m) {
  const F size = abs_(m), one = F(1), half = F(0.5);
  switch (s) {
    case Surrogate::triangle: {
      const F c = max_(min_(m, one), -one);
      return half + c - c * abs_(c) * half;
    }
    case Surrogate::boxcar: return max_(min_(m, half), -half) + half;
    case Surrogate::fast_sigmoid: return m / (one + size) + one;
    case Surrogate::arctan: return atan_(m) + F(1.5707963267948966);
    case Surrogate::sigmoid: {
      const F e = exp_(-size);
      return select(m < F(0), e, one) / (one + e);
    }
    case Surrogate::exponential: {
      const F e = one - exp_(-size);
      return one + select(m < F(0), -e, e);
    }
    case Surrogate::gaussian: return normal_mass(m);
    case Surrogate::multi_gaussian: break;
  }
  return multi_gaussian_mass(m);
}

}  // namespace lsnn
