// Layers without recurrent weights, and layers with a weight of each synapse for each delay,
// against equivalent layers: with zero weights; with one weight and one delay of each synapse.
#pragma once
#include "check.h"
#include "problem.h"

namespace lsnn::test {

using Delays = std::vector<int64_t>;

// Coefficients that are 0 in the kernels of the paper's network.
inline constexpr unsigned zero_in_paper = 1u << SIGMA | 1u << P | 1u << ETA;

// A case without weights if there are no delays, else with a weight for each delay.
inline Case case_of(const Delays& delays, Case c) {
  c.delays = delays;
  c.all_delays = true;
  return c;
}

inline std::vector<Case> synapse_cases() {
  std::vector<Case> all;
  for (int model = 0; model < n_models; model++)
    for (bool weights : {false, true}) {
      const Case c{
          .model = model, .surrogate = Surrogate(model % n_surrogates), .n_ref = model % 3};
      const Delays delays = weights ? Delays{0, 3, 20} : Delays{};
      const Delays few = weights ? Delays{0, 2} : Delays{};
      Case smooth = c, small = c;
      smooth.smooth = small.smooth = true;
      small.T = 6;
      small.B = 2;
      small.N = 3;
      small.n_ref = 0;
      small.detach = false;
      for (const Case& one : {c, smooth}) all.push_back(case_of(delays, one));
      all.push_back(case_of(few, small));
    }
  const int64_t shapes[][2] = {{0, 3}, {1, 1}, {15, 9}, {129, 2}, {6, 33}};  // T, B
  for (auto [T, B] : shapes)
    for (int64_t N : {1, 33, 65})
      for (const Delays& delays : {Delays{}, {7}, {1, 40}, {0, 1, 2, 3}}) {  // also longer than T
        const Case c{.T = T, .B = B, .N = N};
        Case paper = c, general = c;
        paper.n_ref = B % 3;
        paper.want = 0;
        paper.zero = zero_in_paper;
        general.model = int((N + B) % n_models);
        general.surrogate = Surrogate::gaussian;
        for (const Case& one : {paper, general}) all.push_back(case_of(delays, one));
      }
  for (int layout = 1; layout <= 4; layout++)
    for (int64_t N : {1, 7, 33})
      for (const Delays& delays : {Delays{}, {1, 2, 6}})
        all.push_back(
            case_of(delays, {.model = layout, .T = 20, .B = 5, .N = N, .layout = layout}));
  for (double density : {0.0, 0.02})  // matrices that are zero, or mostly zero
    for (bool large : {false, true}) {
      Case c{.T = 20, .B = large ? 5 : 33, .N = large ? 220 : 33, .n_ref = 1, .want = 0};
      c.zero = zero_in_paper;
      c.density = density;
      all.push_back(case_of({0, 1, 2, 5, 9}, c));
    }
  all.push_back(case_of({0, 4}, {.N = 40, .absent = set_of(gw)}));
  return all;
}

// At the ends of slices, warps and shared memory of the CUDA kernels; for the paper's kernels;
// several items in turn.
inline std::vector<Case> synapse_kernel_cases() {
  std::vector<Case> all;
  for (const Delays& delays : {Delays{}, {1, 3, 4}}) {
    for (int64_t N : {64, 129, 257, 512}) {
      Case c{.model = int(N % n_models), .surrogate = Surrogate(N % n_surrogates), .T = 20, .N = N};
      c.B = 5;
      if (N > 300) {
        c.T = 6;
        c.B = 2;
      }
      all.push_back(case_of(delays, c));
    }
    for (int64_t N : {64, 100, 256}) {
      Case c{.T = 150, .B = 3, .N = N, .n_ref = N % 3, .want = 0, .zero = zero_in_paper};
      c.absent = set_of(trace_v, trace_a, trace_A, gv, ga, gA);
      all.push_back(case_of(delays, c));
    }
    for (int64_t T : {3, 4}) all.push_back(case_of(delays, {.T = T, .B = 38, .N = 40}));
  }
  for (int64_t N : {1537, 2100}) all.push_back(case_of({}, {.T = 3, .B = 1, .N = N, .n_ref = 1}));
  Delays all_steps(70);  // more than one launch can pack
  for (int64_t d = 0; d < 70; d++) all_steps[size_t(d)] = d;
  for (bool all_delays : {false, true}) {
    all.push_back({.T = 80, .B = 2, .N = 9, .delays = all_steps});
    all.back().all_delays = all_delays;
  }
  return all;
}

// With a projection, a readout and checkpoints.
inline std::vector<Case> synapse_cases_fused() {
  std::vector<Case> all;
  for (int64_t N : {1, 33, 65})
    for (int64_t B : {1, 5, 33})
      for (const Delays& delays : {Delays{}, {0, 3}}) {
        Case c{.model = int((N + B) % n_models), .T = 70, .B = B, .N = N, .n_ref = B % 2};
        c.smooth = N + B == 38;
        all.push_back(case_of(delays, c));
      }
  return all;
}

// Forward and backward pass of the tested kernels into `r`.
template <class T> using RunBoth = void (*)(const Run<T>& r);

// No weights against weights that are zero.
template <class T> void check_alone(const Run<T>& alone, RunBoth<T> run) {
  Case c = alone.c;
  c.delays.assign(1, 0);
  c.density = 0;
  const Run<T> zero(c);
  run(zero);
  check_same("without weights", alone, zero, z, gw);
  check_same("without weights", alone, zero, gv0, n_names);
  check_same_bits("without weights", alone, zero);
}

// One weight and one delay of each synapse against a matrix for each delay with zeros elsewhere.
template <class T> void check_spread(const Run<T>& given, RunBoth<T> run) {
  Case c = given.c;
  c.all_delays = true;
  const Run<T> spread(c);
  const WStrides to = w_strides(c);
  auto each = [&](auto f) {  // f(matrix, from, to) of all synapses as `given` has them
    for (int64_t j = 0; j < c.N; j++)
      for (int64_t n = 0; n < c.N; n++)
        for (int64_t s = 0; s < c.S(); s++)
          if (given.delay[j * c.N + n] == c.delays[s]) f(s, j, n);
  };
  std::fill_n(spread.b[w].get(), size_of(c, w), T(0));
  const WStrides from = w_strides(given.c);
  each([&](int64_t s, int64_t j, int64_t n) {
    spread.b[w][to.at(s, j, n)] = given.b[w][from.at(0, j, n)];
  });
  run(spread);
  check_same("a matrix for each delay", spread, given, z, gw);
  check_same("a matrix for each delay", spread, given, gv0, n_names);
  check_same_bits("a matrix for each delay", spread, given);
  bool same = true;
  each([&](int64_t s, int64_t j, int64_t n) {
    const T mine = spread.b[gw][(s * c.N + j) * c.N + n];
    same = same && (!given.at(gw) || given.b[gw][j * c.N + n] == mine);
  });
  check(same, "a matrix for each delay: gradients of w");
}

// The check that fits the run; strides of 0 do not allow separate weights.
template <class T> void check_synapses(const Run<T>& r, RunBoth<T> run) {
  if (r.c.delays.empty()) check_alone(r, run);
  else if (r.c.S() > 1 && !r.c.all_delays && !r.c.has_kernel && r.c.layout < 3)
    check_spread(r, run);
}

}  // namespace lsnn::test
