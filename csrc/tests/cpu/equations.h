// A scalar reference of equations (1) to (9) of alif.h, for the C++ test programs.
//
// Every number carries its derivatives along one direction for each group of inputs (forward mode;
// spikes have the derivative of the surrogate, detached terms have none). So one implementation
// gives the outputs of the forward pass, bitwise, and the slopes of the loss that the gradients
// must match.
#pragma once
#include <array>

#include "../../surrogate.h"
#include "../problem.h"

namespace lsnn::test {

// float: values only
template <class T> inline constexpr int tangents = sizeof(T) == 8 ? n_groups : 0;
template <class T> using Slopes = std::array<double, tangents<T>>;

template <class T> struct Dual {
  T x;
  Slopes<T> d{};
  Dual(T value = 0) : x(value) {}
  template <class F> Dual(T value, const F& slope) : x(value) {
    for (int g = 0; g < tangents<T>; g++) d[g] = slope(g);
  }
  friend Dual operator+(const Dual& a, const Dual& b) {
    return {a.x + b.x, [&](int g) { return a.d[g] + b.d[g]; }};
  }
  friend Dual operator-(const Dual& a, const Dual& b) {
    return {a.x - b.x, [&](int g) { return a.d[g] - b.d[g]; }};
  }
  friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.x * b.x, [&](int g) { return a.d[g] * b.x + a.x * b.d[g]; }};
  }
  friend Dual operator/(const Dual& a, const Dual& b) {
    return {a.x / b.x, [&](int g) { return (a.d[g] - a.x / b.x * b.d[g]) / b.x; }};
  }
};

// Reads the inputs of `given`, writes the outputs of the forward pass to `expected`, and returns
// the slopes of the loss sum(gz z) + sum(gv trace_v) + ... over all present gradients.
template <class T> Slopes<T> equations(const Run<T>& given, const Run<T>& expected) {
  using F = Dual<T>;
  const Case& c = given.c;
  const Model model = given.layer().model;
  const int64_t item = c.item(), D = c.D();
  Slopes<T> slopes{};
  auto leaf = [&](T value, int group, int64_t i) {
    return F(value, [&](int g) { return g == group ? direction(group, i) : 0; });
  };
  auto unless = [&](unsigned flag, const F& f) { return model.detach & flag ? F(f.x) : f; };
  auto out = [&](Name name, int64_t i, const F& f, Name gradient, int64_t gradient_i) {
    expected.b[name][i] = f.x;
    for (int g = 0; g < tangents<T> && given.at(gradient); g++)
      slopes[g] += given.b[gradient][gradient_i] * f.d[g];
  };

  // h: the spikes of step t at [D + t]
  std::vector<F> h((D + c.T) * item), v(item), a(item), i(item);
  std::vector<T> r(given.b[r0].get(), given.b[r0].get() + item);
  for (int64_t s = 0; s < D * item; s++)
    h[(D - 1 - s / item) * item + s % item] = leaf(given.b[z0][s], z0, s);
  for (int64_t s = 0; s < item; s++) {
    v[s] = leaf(given.b[v0][s], v0, s);
    a[s] = leaf(given.b[a0][s], a0, s);
    i[s] = leaf(given.b[i0][s], i0, s);
  }
  struct Synapse {
    int64_t from, past;
    T w;
    double slope;
  };  // past: offset in h from neuron 0 of a step to the acting spike; unused with a kernel
  std::vector<std::vector<Synapse>> synapses(c.N);  // of each neuron, in the order of the sum (1)
  const int64_t blocks = c.has_kernel ? 1 : c.S();
  for (int64_t s = 0; s < blocks; s++)
    for (int64_t j = 0; j < c.N; j++)
      for (int64_t n = 0; n < c.N; n++) {
        const int64_t matrix = c.all_delays ? s : 0;
        if (!c.all_delays && !c.has_kernel && given.delay[j * c.N + n] != c.delays[s]) continue;
        const T value = given.b[w][w_strides(c).at(matrix, j, n)];
        synapses[n].push_back(
            {j, j - (1 + c.delays[s]) * item, value, direction(w, (matrix * c.N + j) * c.N + n)});
      }
  std::vector<std::array<F, n_coefficients>> coefficients(c.N);
  for (int64_t n = 0; n < c.N; n++)
    for (int q = 0; q < n_coefficients; q++)
      coefficients[n][q] = leaf(given.b[k][q * c.N + n], k + q, n);
  std::fill_n(expected.bits.get(), expected.n_bits(), 0);

  std::vector<F> f(item);  // filtered by the kernel
  for (int64_t t = 0; t < c.T; t++) {
    for (int64_t s = 0; c.has_kernel && s < item; s++) {
      f[s] = F(0);
      for (int64_t tap = 0; tap < c.S(); tap++) {
        const int64_t i = tap * c.N + s % c.N;
        const F past = unless(detach_rec, h[(D + t - 1 - c.delays[tap]) * item + s]);
        f[s] = f[s] + past * leaf(given.b[kernel][i], kernel, i);
      }
    }
    for (int64_t s = 0; s < item; s++) {
      const int64_t n = s % c.N, at = t * item + s;
      if (c.after_end(at)) {
        for (Name name : {z, trace_v, trace_a, trace_A, y, smooth_z}) expected.b[name][at] = 0;
        for (int64_t variable = 0; t % segment == 0 && variable < 4; variable++)
          expected.b[carry][(t / segment * 4 + variable) * item + s] = 0;
        continue;
      }
      const auto& p = coefficients[n];
      auto reset = [&](const F& y, const F& z, const F& A) {
        if (model.reset == Reset::to_R) return (F(1) - z) * y + z * p[R_];
        return y - z * (model.reset == Reset::minus_A ? A : p[R_]);
      };
      auto m = [&](const F& n, const F& A) {
        return (n - A) / (model.scale == Scale::width_A ? p[WIDTH] * A : p[WIDTH]);
      };
      auto over = [&](const F& m) { return model.ge ? m.x >= 0 : m.x > 0; };
      auto spike = [&](const F& m) {
        const T value = c.smooth ? T(dampening) * psi_integral(c.surrogate, m.x) : T(over(m));
        const bool ends = has_bounded_support(c.surrogate) || std::fabs(double(m.x)) < c.cutoff;
        const double psi = ends ? double(psi_shape(c.surrogate, m.x)) : 0;
        return F(value, [&](int g) { return dampening * psi * m.d[g]; });
      };
      const T carried[] = {v[s].x, a[s].x, i[s].x, r[s]};
      for (int64_t variable = 0; t % segment == 0 && variable < 4; variable++)
        expected.b[carry][(t / segment * 4 + variable) * item + s] = carried[variable];

      F sum = leaf(given.b[x][strides(c, x).at(at, c)], x, at);
      for (const Synapse& of : synapses[n]) {  // (1)
        if (c.has_mask && !given.mask[s - n + of.from]) continue;
        const F& past = c.has_kernel ? f[s - n + of.from] : h[(D + t) * item + s - n + of.past];
        const bool detached = model.detach & detach_rec && !c.has_kernel;
        sum.x = sum.x + of.w * past.x;
        for (int g = 0; g < tangents<T>; g++)
          sum.d[g] += (detached ? 0 : of.w * past.d[g]) + (g == w ? of.slope * past.x : 0);
      }
      i[s] = p[SIGMA] * i[s] + sum;  // (2)
      const F z1 = h[(D + t - 1) * item + s];
      const F e = model.drive == Drive::spike   ? z1
                  : model.drive == Drive::cross ? spike(m(v[s], p[THETA] + p[BETA] * a[s]))
                                                : F(T(over(v[s] - p[THETA])));
      a[s] = p[RHO] * a[s] + p[Q] * unless(detach_adapt, e) + p[P] * v[s];  // (3)
      const F A = p[THETA] + p[BETA] * a[s];  // (4)
      const F y1 = p[ALPHA] * v[s] + p[KAPPA] * (i[s] - p[ETA] * a[s]);  // (5)
      const F u = model.when == When::next ? reset(y1, unless(detach_reset, z1), A) : y1;  // (6)
      const F m1 = m(model.test == Test::old_v ? v[s] : u, unless(detach_thr, A));  // (7)
      const bool free = !(r[s] > 0), fired = free && over(m1);
      const F now = free ? spike(m1) : F(0);
      v[s] = model.when == When::now ? reset(u, unless(detach_reset, now), A) : u;  // (8)
      r[s] = fired ? T(c.n_ref) : r[s] > 1 ? r[s] - 1 : T(0);  // (9)

      h[(D + t) * item + s] = now;
      expected.b[y][at] = y1.x;
      expected.b[smooth_z][at] = now.x;
      if (fired) expected.bits[(t * c.B + s / c.N) * words(c.N) + n / 32] |= 1u << n % 32;
      out(z, at, now, gz, strides(c, gz).at(at, c));
      out(trace_v, at, v[s], gv, at);
      out(trace_a, at, a[s], ga, at);
      out(trace_A, at, A, gA, at);
    }
  }
  for (int64_t s = 0; s < item; s++) {
    out(v_last, s, v[s], gv_last, s);
    out(a_last, s, a[s], ga_last, s);
    out(i_last, s, i[s], gi_last, s);
    expected.b[r_last][s] = r[s];
  }
  for (int64_t s = 0; s < D * item; s++) {
    const int64_t step = c.length(s % item / c.N) - 1 - s / item;
    out(z_last, s, h[(D + step) * item + s % item], gz_last, s);
  }
  return slopes;
}

}  // namespace lsnn::test
