// Linear maps of spikes, and spikes as bits, for the C++ test programs: against plain loops.
#pragma once
#include "../cpu/run.h"
#include "check.h"
#include "problem.h"
#include "threads.h"

namespace lsnn::test {

// Spikes x [R,I] have these bits [R,words(I)]; other numbers none.
template <class T>
void check_spike_bits(const T* x, int64_t R, int64_t I, const uint32_t* bits, bool spikes) {
  const int64_t n = R * words(I);
  const auto found = buffer<uint32_t>(n);
  std::fill_n(found.get(), n, ~0u);
  const bool got = cpu::spike_bits(x, R, I, found.get(), parallel());
  check(got == spikes, got ? "numbers taken for spikes" : "spikes taken for other numbers");
  if (spikes) check(std::equal(bits, bits + n, found.get()), "bits of spikes");
}

// y = x W^T + bias to the last bit, its gradients to rounding, three threads as one. x is mostly
// zero; ones: 0 or 1, and given as bits. The gradient has g_rows rows, which repeat.
template <class T>
void check_linear(int64_t R, int64_t I, int64_t N, int64_t g_rows, bool bias, bool transposed,
                  bool ones) {
  at_hand = std::string("linear ") + (sizeof(T) == 4 ? "float" : "double");
  for (int64_t n : {R, I, N, g_rows, int64_t(bias), int64_t(transposed), int64_t(ones)})
    at_hand += " " + std::to_string(n);
  auto drawn_buffer = [](int64_t n, int stream) {
    Buffer<T> b = buffer<T>(n);
    for (int64_t i = 0; i < n; i++) b[i] = stream ? T(drawn(stream, i, -1, 1)) : T(NAN);
    return b;
  };
  const auto x = drawn_buffer(R * I, 1), w = drawn_buffer(N * I, 2), c = drawn_buffer(N, 3),
             g = drawn_buffer(g_rows * N, 4);
  const auto bits = buffer<uint32_t>(R * words(I));
  const auto bytes = buffer<uint8_t>(R * I);
  std::fill_n(bits.get(), R * words(I), 0u);
  bool spikes = true;
  for (int64_t i = 0; i < R * I; i++) {
    x[i] = std::fabs(x[i]) > 0.2 ? T(0) : ones || x[i] > 0 ? T(1) : x[i];
    bytes[i] = x[i] == T(0) ? 0 : x[i] == T(1) ? 1 : 130;
    spikes = spikes && bytes[i] < 2;
    if (x[i] != T(0)) bits[i / I * words(I) + i % I / 32] |= 1u << i % I % 32;
  }
  check_spike_bits(x.get(), R, I, bits.get(), spikes);
  check_spike_bits(bytes.get(), R, I, bits.get(), spikes);
  const T* const numbers = ones ? nullptr : x.get();
  const uint32_t* const packed = ones ? bits.get() : nullptr;
  const int64_t of_n = transposed ? 1 : I, of_i = transposed ? N : 1;
  Buffer<T> y[2], gw[2], gc[2];
  for (int run = 0; run < 2; run++) {
    const Threads threads(run ? 3 : 1, 1);
    y[run] = drawn_buffer(R * N, 0);
    gw[run] = drawn_buffer(N * I, 0);
    gc[run] = drawn_buffer(N, 0);
    cpu::linear_forward<T>({R, I, N, numbers, w.get(), of_n, of_i, bias ? c.get() : nullptr,
                            y[run].get(), nullptr, 0, nullptr, nullptr, packed},
                           parallel());
    cpu::linear_backward<T>({R, I, N, numbers, nullptr, 0, 0, nullptr, nullptr, g.get(), g_rows,
                             gw[run].get(), bias ? gc[run].get() : nullptr, packed},
                            parallel());
    for (int64_t r = 0; r < R; r++)
      for (int64_t n = 0; n < N; n++) {
        T sum = bias ? c[n] : T(0);
        for (int64_t i = 0; i < I; i++) sum = sum + x[r * I + i] * w[n * of_n + i * of_i];
        if (!(y[run][r * N + n] == sum)) return check(false, "y" + differ(y[run][r * N + n], sum));
      }
  }
  for (int64_t n = 0; n < N; n++)
    for (int64_t i = 0; i < I + bias; i++) {  // the last one: the bias
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

inline void check_all_linear() {
  const int64_t shapes[][4] = {{0, 3, 2, 0},       {1, 1, 1, 1},         {64, 31, 33, 64},
                               {65, 33, 7, 65},    {200, 140, 220, 200}, {1030, 20, 31, 10},
                               {4500, 9, 5, 4500}, {40000, 3, 2, 40000}, {8, 32, 3, 1},
                               {200, 140, 22, 25}, {40000, 33, 2, 40},   {96, 70, 9, 32}};
  for (auto [R, I, N, g_rows] : shapes)
    for (bool bias : {false, true})
      for (bool ones : {false, true}) {
        check_linear<float>(R, I, N, g_rows, bias, !bias, ones);
        check_linear<double>(R, I, N, g_rows, bias, bias, ones);
      }
}

}  // namespace lsnn::test
