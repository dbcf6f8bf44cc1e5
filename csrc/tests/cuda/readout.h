// The readout of the CUDA kernels against that of the CPU kernels.
#pragma once
#include "../../cpu/run.h"
#include "../check.h"
#include "../problem.h"

namespace lsnn::test {

struct ReadoutCase {
  Case layer;
  int64_t O;
  bool bias = true, from_zero = false, of_last = true, of_all = true, wanted = true;
};

inline std::vector<ReadoutCase> readout_cases() {
  const uint64_t traces = set_of(trace_v, trace_a, trace_A, gv, ga, gA);
  Case lsnn{.T = 70, .B = 9, .N = 68, .want = 0, .zero = 1u << SIGMA | 1u << P | 1u << ETA};
  lsnn.absent = traces;
  Case odd{.T = 33, .B = 3, .N = 33, .layout = 3}, one = odd, none = odd, smooth = odd;
  one.T = one.B = 1;
  one.N = 5;
  none.T = 0;
  smooth.smooth = true;
  smooth.surrogate = Surrogate::gaussian;
  Case silent = odd;  // without a gradient of the spikes from outside
  silent.absent |= set_of(gz);
  return {{lsnn, 10},
          {lsnn, 40, false, true},
          {odd, 3},
          {silent, 33, true, false, false},
          {one, 1},
          {none, 4},
          {smooth, 3},
          {odd, 2, true, true, true, false},
          {odd, 2, true, false, true, true, false}};
}

// A readout of a layer, with its buffers.
template <class T> struct ReadoutRun {
  const ReadoutCase& c;
  const Run<T> r;
  Buffer<T> w, bias, p0, gp, gp_last, p, p_last, gw, gbias, gp0;

  explicit ReadoutRun(const ReadoutCase& of) : c(of), r(of.layer) {
    const Case& l = c.layer;
    int stream = 300;
    auto drawn_numbers = [&](int64_t n) {
      Buffer<T> b = buffer<T>(n);
      for (int64_t i = 0; i < n; i++) b[i] = T(float(drawn(stream, i, -1, 1)));
      stream++;
      return b;
    };
    const int64_t O = c.O, row = l.B * O, all = l.T * row;
    w = drawn_numbers(O * l.N);
    bias = drawn_numbers(O);
    p0 = drawn_numbers(row);
    gp = drawn_numbers(all);
    gp_last = drawn_numbers(row);
    for (auto [to, n] :
         {std::pair{&p, all}, {&p_last, row}, {&gw, O * l.N}, {&gbias, O}, {&gp0, row}})
      *to = drawn_numbers(n);
  }
  Readout readout(bool with_bias) const {
    return {c.O,
            w.get(),
            1,
            c.O,
            0.8,
            c.from_zero ? nullptr : p0.get(),  // w is transposed
            with_bias && c.bias ? bias.get() : nullptr};
  }
  ForwardArgs forward_args(bool with_bias, bool save = true) const {
    ForwardArgs f = r.forward_args(save);
    f.readout = readout(with_bias);
    f.readout_p = p.get();
    f.readout_last = p_last.get();
    return f;
  }
  BackwardArgs backward_args(bool with_bias) const {
    BackwardArgs f = r.backward_args();
    f.readout = readout(with_bias);
    f.gp = c.of_all ? gp.get() : nullptr;
    f.gp_last = c.of_last ? gp_last.get() : nullptr;
    f.gw_out = c.wanted ? gw.get() : nullptr;
    f.gp_first = gp0.get();
    f.gbias_out = with_bias && c.wanted ? gbias.get() : nullptr;
    return f;
  }
};

// forward, backward: of the CUDA kernels.
template <class T, class Forward, class Backward>
void check_readout(const ReadoutCase& c, Parallel parallel, const Forward& forward,
                   const Backward& backward) {
  at_hand = std::string(sizeof(T) == 4 ? "float" : "double") +
            " readout, O=" + std::to_string(c.O) + (c.bias ? "" : " no bias") +
            (c.from_zero ? " from 0" : "") + (c.of_last ? "" : " not of the last p") +
            (c.of_all ? "" : " of the last p alone") + (c.wanted ? " " : " of no weights ") +
            c.layer.text();
  const Case& l = c.layer;
  const int64_t O = c.O, N = l.N, row = l.B * O;
  const ReadoutRun<T> got(c), wanted(c), unsaved(c), of_bits(c);
  auto near = [&](const char* what, const Buffer<T>& a, const auto& b, int64_t n, double most) {
    double largest = 1;
    for (int64_t i = 0; i < n; i++) largest = std::max(largest, std::abs(double(b[i])));
    for (int64_t i = 0; i < n; i++)
      if (!(std::abs(double(a[i]) - double(b[i])) <= most * largest))
        return check(false, std::string(what) + " " + std::to_string(i) + differ(a[i], b[i]));
  };
  const double eps = sizeof(T) == 4 ? 1e-4 : 1e-11;
  cpu::forward<T>(wanted.forward_args(false), parallel);
  for (int64_t i = 0; c.bias && i < l.T * row; i++) wanted.p[i] = wanted.p[i] + wanted.bias[i % O];
  forward(got.forward_args(true));
  forward(unsaved.forward_args(true, false));
  ForwardArgs bits_only = of_bits.forward_args(true, false);
  if (!l.smooth) {
    bits_only.z = nullptr;
    bits_only.saved.bits = of_bits.r.bits.get();
  }
  forward(bits_only);
  for (const ReadoutRun<T>* run : {&got, &unsaved, &of_bits}) {
    near("p", run->p, wanted.p, l.T * row, forward_tolerance<T>(l));
    near("the last p", run->p_last, wanted.p_last, row, forward_tolerance<T>(l));
  }
  backward(got.backward_args(true));
  cpu::backward<T>(wanted.backward_args(false), parallel);
  near("gradient of the current", got.r.b[gx], wanted.r.b[gx], l.T * l.item(), eps);
  near("gradient of p", got.gp0, wanted.gp0, row, eps);
  if (!c.wanted) return;
  near("gradient of w_out", got.gw, wanted.gw, O * N, eps);
  std::vector<double> of_bias(O, 0.0);
  for (int64_t i = 0; c.of_all && i < l.T * row; i++) of_bias[i % O] += double(got.gp[i]);
  near("gradient of the bias", got.gbias, of_bias, O, eps);
}

}  // namespace lsnn::test
