// Fused projection and readout of the CPU kernels, and checkpoints. Results must equal those of
// separate calls.
#pragma once
#include "../../cpu/run.h"
#include "../check.h"
#include "../problem.h"

namespace lsnn::test {

// A case with inputs, most of them zero, instead of a current, and with a readout.
template <class T> struct Fused {
  Run<T> r;
  int64_t I, O;
  bool bias;
  // [T,B,I], [N,I], [N], [O,N], [B,O], [T,B,O], [B,O]
  Buffer<T> in, w_in, c, w_out, p0, gp, gp_last;
  Buffer<T> p, p_last, gw_in, gc, gw_out, gp0;                       // written
  std::vector<uint32_t> bits;  // [T,B,words(I)] inputs in place of `in`, or empty

  static constexpr double decay = 0.9;

  Fused(const Case& of, int64_t inputs, int64_t outputs, bool with_bias, bool ones)
      : r(of),
        I(inputs),
        O(outputs),
        bias(with_bias) {
    const int64_t steps = of.T * of.B, N = of.N;
    auto make = [](int64_t n, int stream, double low, double high) {
      Buffer<T> b = buffer<T>(n);
      for (int64_t i = 0; i < n; i++) b[i] = stream ? T(drawn(stream, i, low, high)) : T(NAN);
      return b;
    };
    in = make(steps * I, 201, -1, 1);
    w_in = make(N * I, 202, -1, 2);
    c = make(N, 203, -.2, .4);
    for (int64_t i = 0; i < steps * I; i++)
      in[i] = std::fabs(in[i]) > 0.3 ? T(0) : ones || in[i] > 0 ? T(1) : in[i];
    w_out = make(O * N, 204, -1, 1);
    p0 = make(of.B * O, 205, -1, 1);
    gp = make(steps * O, 206, -1, 1);
    gp_last = make(of.B * O, 207, -1, 1);
    for (int64_t row = 0; row < steps; row++) {  // must not be read
      if (!of.after_end(row / of.B, row % of.B)) continue;
      std::fill_n(in.get() + row * I, I, T(NAN));
      std::fill_n(gp.get() + row * O, O, T(NAN));
    }
    p = make(steps * O, 0, 0, 0);
    p_last = make(of.B * O, 0, 0, 0);
    gw_in = make(N * I, 0, 0, 0);
    gc = make(N, 0, 0, 0);
    gw_out = make(O * N, 0, 0, 0);
    gp0 = make(of.B * O, 0, 0, 0);
  }

  // From here on inputs, which must be 0 or 1, are given as bits.
  void give_bits() {
    bits.assign(std::max<int64_t>(1, r.c.T * r.c.B * words(I)), 0);
    for (int64_t row = 0; row < r.c.T * r.c.B; row++)
      for (int64_t i = 0; i < I; i++) {
        if (in[row * I + i] != T(0)) bits[row * words(I) + i / 32] |= 1u << i % 32;
        in[row * I + i] = T(NAN);
      }
  }
  Projection projection() const {
    return {I, w_in.get(), I, 1, bias ? c.get() : nullptr, bits.empty() ? nullptr : bits.data()};
  }
  Readout readout() const { return {O, w_out.get(), r.c.N, 1, decay, p0.get()}; }
  // every: 0, or steps between saved states without y; a multiple of chunk, as sums over a chunk
  // differ otherwise.
  void run(int64_t every, Parallel parallel) {
    const int64_t B = r.c.B;
    const Buffer<T> states = buffer<T>(every ? segments(r.c.T, every) * 4 * r.c.item() : 0);
    Saved saved = r.saved();
    if (every) {
      saved.y = nullptr;
      saved.carry = states.get();
      saved.every = every;
    }
    ForwardArgs f = r.forward_args();
    f.x = in.get();
    f.x_stride_t = B * I;
    f.x_stride_b = I;
    f.saved = saved;
    f.projection = projection();
    f.readout = readout();
    f.readout_p = p.get();
    f.readout_last = p_last.get();
    cpu::forward<T>(f, parallel);
    BackwardArgs b = r.backward_args();
    b.saved = saved;
    b.x = in.get();
    b.x_stride_t = B * I;
    b.x_stride_b = I;
    b.projection = projection();
    b.gw_in = gw_in.get();
    b.gbias = bias ? gc.get() : nullptr;
    b.readout = readout();
    b.gp = gp.get();
    b.gp_last = gp_last.get();
    b.gw_out = gw_out.get();
    b.gp_first = gp0.get();
    cpu::backward<T>(b, parallel);
  }
};

template <class T> void near(const char* what, int64_t i, T got, double want, double size) {
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;
  check(std::fabs(got - want) <= tolerance * (size + 1e-2),
        std::string(what) + " " + std::to_string(i) + differ(got, want));
}
template <class T> void same_buffer(const char* what, const Buffer<T>& a, const Buffer<T>& b,
                                    int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!(a[i] == b[i]))
      return check(false, std::string(what) + " " + std::to_string(i) + differ(a[i], b[i]));
}

// Fused against separate: bitwise identical forward, gradients to rounding.
template <class T> void check_fused(const Case& c, int64_t I, int64_t O, bool bias, bool ones,
                                    Parallel parallel) {
  const std::string name = std::string("fused ") + (sizeof(T) == 4 ? "float " : "double ") +
                           c.text() + " I=" + std::to_string(I) + " O=" + std::to_string(O);
  at_hand = name;
  Fused<T> inside(c, I, O, bias, ones);
  inside.run(0, parallel);

  Run<T> apart(c);
  cpu::linear_forward<T>(
      {c.T * c.B, I, c.N, inside.in.get(), inside.w_in.get(), I, 1, bias ? inside.c.get() : nullptr,
       apart.b[x].get(), nullptr, 0, nullptr, nullptr},
      parallel);
  cpu::forward<T>(apart.forward_args(), parallel);
  check_same("projection inside", inside.r, apart, z, gx);
  check_same_bits("projection inside", inside.r, apart);

  const int64_t B = c.B, N = c.N;
  const T k = T(Fused<T>::decay), rest = T(1 - Fused<T>::decay);
  Buffer<T> gz_all = buffer<T>(c.T * c.item());
  for (int64_t b = 0; b < B; b++)
    for (int64_t o = 0; o < O; o++) {
      T p = inside.p0[b * O + o];
      for (int64_t t = c.length(b); t < c.T; t++)
        check(inside.p[(t * B + b) * O + o] == 0, "readout after the last step");
      for (int64_t t = 0; t < c.length(b); t++) {
        T sum = 0;
        for (int64_t n = 0; n < N; n++)
          sum = sum + apart.b[z][(t * B + b) * N + n] * inside.w_out[o * N + n];
        p = k * p + rest * sum;
        check(inside.p[(t * B + b) * O + o] == p,
              "readout" + differ(inside.p[(t * B + b) * O + o], p));
      }
      check(inside.p_last[b * O + o] == p, "last readout" + differ(inside.p_last[b * O + o], p));
    }
  std::vector<double> gw_out(O * N), size(O * N);
  for (int64_t i = 0; i < c.T * c.item(); i++) gz_all[i] = apart.b[gz][i];
  for (int64_t b = 0; b < B; b++)
    for (int64_t o = 0; o < O; o++) {
      double g = inside.gp_last[b * O + o];
      for (int64_t t = c.length(b) - 1; t >= 0; t--) {
        g += inside.gp[(t * B + b) * O + o];
        for (int64_t n = 0; n < N; n++) {
          const int64_t at = (t * B + b) * N + n;
          const double term = rest * g * apart.b[z][at];
          gz_all[at] += T(rest * g * inside.w_out[o * N + n]);
          gw_out[o * N + n] += term;
          size[o * N + n] += std::fabs(term);
        }
        g *= k;
      }
      near("gradient of the first readout", b * O + o, inside.gp0[b * O + o], g, std::fabs(g));
    }
  for (int64_t i = 0; i < O * N; i++)
    near("gradient of w_out", i, inside.gw_out[i], gw_out[i], size[i]);
  BackwardArgs b = apart.backward_args();
  b.gz = gz_all.get();
  b.gz_stride_t = c.item();
  b.gz_stride_b = N;
  b.gz_stride_n = 1;
  cpu::backward<T>(b, parallel);
  check_close("readout inside", inside.r, apart, sizeof(T) == 4 ? 1e-4 : 1e-10);
  for (int64_t n = 0; n < N; n++)
    for (int64_t i = 0; i <= I; i++) {  // the last one: the bias
      double sum = 0, all = 0;
      for (int64_t row = 0; row < c.T * B; row++) {
        if (c.after_end(row / B, row % B)) continue;
        const double term = (i < I ? double(inside.in[row * I + i]) : 1) * apart.b[gx][row * N + n];
        sum += term;
        all += std::fabs(term);
      }
      if (i < I) near("gradient of w_in", n * I + i, inside.gw_in[n * I + i], sum, 10 * all);
      else if (bias) near("gradient of the bias", n, inside.gc[n], sum, 10 * all);
    }

  for (int64_t every : {chunk, 3 * chunk, segment, 2 * c.T + 1}) {
    at_hand = name + " every " + std::to_string(every);
    Fused<T> saving(c, I, O, bias, ones);
    if (ones && every != chunk) saving.give_bits();
    saving.run(every, parallel);
    check_same("checkpoints", saving.r, inside.r, z, y);
    check_same("checkpoints", saving.r, inside.r, gx, gk);
    double largest = 0;
    for (int64_t n = 0; n < N; n++)
      largest = std::max(largest, std::fabs(double(inside.r.b[gk][SIGMA * N + n])));
    for (int64_t i = 0; i < n_coefficients * N; i++) {
      const T got = saving.r.b[gk][i], want = inside.r.b[gk][i];
      if (!inside.r.written(gk, i) || !c.want) continue;
      // i' of the first step of a segment is that of the forward pass; elsewhere it follows from y,
      // with rounding.
      if (i / N == SIGMA) near("checkpoints: sigma", i % N, got, want, largest);
      else check(got == want, "checkpoints: coefficients " + std::to_string(i) + differ(got, want));
    }
    same_buffer("checkpoints: p", saving.p, inside.p, c.T * B * O);
    same_buffer("checkpoints: w_in", saving.gw_in, inside.gw_in, N * I);
    same_buffer("checkpoints: w_out", saving.gw_out, inside.gw_out, O * N);
    same_buffer("checkpoints: p0", saving.gp0, inside.gp0, B * O);
    if (bias) same_buffer("checkpoints: bias", saving.gc, inside.gc, N);
  }
}

}  // namespace lsnn::test
