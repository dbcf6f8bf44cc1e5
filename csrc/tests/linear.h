// Linear maps of spikes, and spikes as bits, for the C++ test programs: against plain loops.
#pragma once
#include "../cpu/run.h"
#include "check.h"
#include "problem.h"
#include "threads.h"

namespace lsnn::test {

// Spikes x [R,I] must have these bits [R,words(I)]; other numbers none. They are read as steps of a
// batch of one, and as a batch whose items lie one behind the other, [B,T,I].
template <class T>
void check_spike_bits(const T* x, int64_t R, int64_t I, const uint32_t* bits, bool spikes) {
  const int64_t W = words(I), n = R * W;
  const auto found = buffer<uint32_t>(n);
  for (const int64_t B : {int64_t(1), R % 5 ? R : R / 5}) {
    const int64_t steps = B ? R / B : 0;
    std::fill_n(found.get(), n, ~0u);
    const bool got = cpu::spike_bits(x, {steps, B, I, I, steps * I}, found.get(), parallel());
    check(got == spikes, got ? "numbers taken for spikes" : "spikes taken for other numbers");
    for (int64_t r = 0; spikes && r < R; r++)
      check(std::equal(bits + r * W, bits + (r + 1) * W, &found[(r % steps * B + r / steps) * W]),
            "bits of spikes");
  }
}

// Sparse rows x [R,I], as numbers, bytes and bits; ones: nonzero inputs are 1.
template <class T> struct MostlyZero {
  Buffer<T> x;
  Buffer<uint8_t> bytes;
  Buffer<uint32_t> bits;
  bool spikes = true;  // all are 0 or 1

  MostlyZero(int64_t R, int64_t I, bool ones)
      : x(buffer<T>(R * I)),
        bytes(buffer<uint8_t>(R * I)),
        bits(buffer<uint32_t>(R * words(I))) {
    std::fill_n(bits.get(), R * words(I), 0u);
    for (int64_t i = 0; i < R * I; i++) {
      const T drawn_one = T(drawn(1, i, -1, 1));
      x[i] = std::fabs(drawn_one) > 0.2 ? T(0) : ones || drawn_one > 0 ? T(1) : drawn_one;
      bytes[i] = x[i] == T(0) ? 0 : x[i] == T(1) ? 1 : 130;
      spikes = spikes && bytes[i] < 2;
      if (x[i] != T(0)) bits[i / I * words(I) + i % I / 32] |= 1u << i % I % 32;
    }
  }
};

struct LinearCase {
  int64_t R, I, N, g_rows;  // the gradient has g_rows rows, which repeat
  bool bias, of_bias;  // whether there is a bias, and its gradient
  bool transposed;  // the weights are stored as [I,N]
  bool ones;  // inputs are 0 or 1, and given as bits
};

// y = x W^T + bias bitwise, its gradients to rounding, and a second run bitwise identical; forward
// and backward are those of the kernels under test, with the number of the run.
template <class T, class Forward, class Backward>
void check_linear(const char* what, const LinearCase& of, const Forward& forward,
                  const Backward& backward) {
  const auto [R, I, N, g_rows, bias, of_bias, transposed, ones] = of;
  at_hand = std::string("linear, ") + what + (sizeof(T) == 4 ? " float" : " double");
  for (int64_t n : {R, I, N, g_rows, int64_t(bias), int64_t(transposed), int64_t(ones)})
    at_hand += " " + std::to_string(n);
  auto drawn_buffer = [](int64_t n, int stream) {
    Buffer<T> b = buffer<T>(n);
    for (int64_t i = 0; i < n; i++) b[i] = stream ? T(drawn(stream, i, -1, 1)) : T(NAN);
    return b;
  };
  const MostlyZero<T> rows(R, I, ones);
  const auto &x = rows.x, w = drawn_buffer(N * I, 2), c = drawn_buffer(N, 3),
             g = drawn_buffer(g_rows * N, 4);
  Linear l{};
  l.R = R;
  l.I = I;
  l.N = N;
  l.x = ones ? nullptr : x.get();
  l.bits = ones ? rows.bits.get() : nullptr;
  Buffer<T> y[2], gw[2], gc[2];
  for (int run = 0; run < 2; run++) {
    y[run] = drawn_buffer(R * N, 0);
    gw[run] = drawn_buffer(N * I, 0);
    gc[run] = drawn_buffer(N, 0);
    Linear there = l, back = l;
    there.w = w.get();
    there.w_stride_n = transposed ? 1 : I;
    there.w_stride_i = transposed ? N : 1;
    there.bias = bias ? c.get() : nullptr;
    there.y = y[run].get();
    forward(there, run);
    back.g = g.get();
    back.g_rows = g_rows;
    back.gw = gw[run].get();
    back.gbias = of_bias ? gc[run].get() : nullptr;
    backward(back, run);
    for (int64_t r = 0; r < R; r++)
      for (int64_t n = 0; n < N; n++) {
        T sum = bias ? c[n] : T(0);
        for (int64_t i = 0; i < I; i++)
          sum = sum + x[r * I + i] * w[n * there.w_stride_n + i * there.w_stride_i];
        if (!(y[run][r * N + n] == sum)) return check(false, "y" + differ(y[run][r * N + n], sum));
      }
  }
  for (int64_t n = 0; n < N; n++)
    for (int64_t i = 0; i < I + of_bias; i++) {  // the last one: the bias
      const T got = i < I ? gw[0][n * I + i] : gc[0][n],
              second = i < I ? gw[1][n * I + i] : gc[1][n];
      double sum = 0, size = 1e-3;
      for (int64_t r = 0; r < R; r++) {
        const double term = double(g[r % g_rows * N + n]) * (i < I ? x[r * I + i] : 1);
        sum += term;
        size += std::fabs(term);
      }
      if (!(std::fabs(got - sum) <= (sizeof(T) == 4 ? 1e-5 : 1e-13) * size && got == second))
        return check(false, "gradient" + differ(got, sum));
    }
}

// On the CPU: three threads against one, and spikes as bits.
template <class T> void check_linear_on_cpu(const LinearCase& of) {
  auto on_threads = [](const auto& pass) {
    return [&pass](const Linear& l, int run) {
      const Threads threads(run ? 3 : 1, 1);
      pass(l, parallel());
    };
  };
  check_linear<T>("CPU", of, on_threads(cpu::linear_forward<T>),
                  on_threads(cpu::linear_backward<T>));
  const MostlyZero<T> rows(of.R, of.I, of.ones);
  check_spike_bits(rows.x.get(), of.R, of.I, rows.bits.get(), rows.spikes);
  check_spike_bits(rows.bytes.get(), of.R, of.I, rows.bits.get(), rows.spikes);
}

inline void check_all_linear() {
  const int64_t shapes[][4] = {{0, 3, 2, 0},       {1, 1, 1, 1},         {64, 31, 33, 64},
                               {65, 33, 7, 65},    {200, 140, 220, 200}, {1030, 20, 31, 10},
                               {4500, 9, 5, 4500}, {40000, 3, 2, 40000}, {8, 32, 3, 1},
                               {200, 140, 22, 25}, {40000, 33, 2, 40},   {96, 70, 9, 32}};
  for (auto [R, I, N, g_rows] : shapes)
    for (bool bias : {false, true})
      for (bool ones : {false, true}) {
        check_linear_on_cpu<float>({R, I, N, g_rows, bias, bias, !bias, ones});
        check_linear_on_cpu<double>({R, I, N, g_rows, bias, bias, bias, ones});
      }
}

}  // namespace lsnn::test
