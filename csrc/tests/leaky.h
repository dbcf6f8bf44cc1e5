// The leaky integrator against a plain loop, bitwise, for the C++ test programs.
#pragma once
#include "../cpu/run.h"
#include "check.h"
#include "problem.h"

namespace lsnn::test {

// T steps of n numbers; forward and backward are those of the kernels under test.
template <class T, class Forward, class Backward>
void check_leaky(const char* what, int64_t steps, int64_t n, bool from_zero, const Forward& forward,
                 const Backward& backward) {
  at_hand = std::string("leaky readout, ") + what + (sizeof(T) == 4 ? " float T=" : " double T=") +
            std::to_string(steps) + " n=" + std::to_string(n);
  const double k = 0.9;
  auto make = [](int64_t size, int stream) {
    Buffer<T> b = buffer<T>(size);
    for (int64_t i = 0; i < size; i++) b[i] = stream ? T(drawn(stream, i, -1, 1)) : T(NAN);
    return b;
  };
  const Buffer<T> x = make(steps * n, 301), first = make(n, 302), gp = make(steps * n, 303),
                  gp_last = make(n, 304);
  const Buffer<T> p = make(steps * n, 0), last = make(n, 0), gx = make(steps * n, 0),
                  gp_first = make(n, 0);
  forward(
      LeakyForward{steps, n, k, x.get(), from_zero ? nullptr : first.get(), p.get(), last.get()});
  backward(LeakyBackward{steps, n, k, gp.get(), gp_last.get(), gx.get(), gp_first.get()});
  const T decay = T(k), rest = T(1 - k);
  auto expect = [](const char* name, int64_t i, T got, T wanted) {
    if (!(got == wanted))
      check(false, std::string(name) + "[" + std::to_string(i) + "]" + differ(got, wanted));
  };
  for (int64_t c = 0; c < n; c++) {
    T value = from_zero ? T(0) : first[c];
    for (int64_t t = 0; t < steps; t++) {
      value = decay * value + rest * x[t * n + c];
      expect("p", t * n + c, p[t * n + c], value);
    }
    expect("last", c, last[c], value);
    T of_p = gp_last[c];
    for (int64_t t = steps - 1; t >= 0; t--) {
      of_p = of_p + gp[t * n + c];
      expect("gradient of x", t * n + c, gx[t * n + c], rest * of_p);
      of_p = decay * of_p;
    }
    expect("gradient of the first p", c, gp_first[c], of_p);
  }
}

// Ends of vectors, of blocks of threads, and of the columns of a CPU thread; empty inputs.
template <class Check> void for_leaky_sizes(const Check& check_size) {
  const int64_t sizes[][2] = {{0, 0},   {0, 5},    {3, 0},   {1, 1},     {7, 15},   {8, 16},
                              {9, 127}, {17, 128}, {5, 129}, {33, 1000}, {40, 5000}};
  int i = 0;
  for (const auto& size : sizes) check_size(size[0], size[1], i++ % 2 == 0);
}

template <class T> void check_leaky_on_cpu(Parallel parallel) {
  auto forward = [&](const LeakyForward& f) { cpu::leaky_forward<T>(f, parallel); };
  auto backward = [&](const LeakyBackward& f) { cpu::leaky_backward<T>(f, parallel); };
  for_leaky_sizes([&](int64_t steps, int64_t n, bool from_zero) {
    check_leaky<T>("CPU", steps, n, from_zero, forward, backward);
  });
}

}  // namespace lsnn::test
