// Layers without recurrent weights, and layers with a weight of each synapse for each delay, against layers that say the same
// in another way: with weights that are zero; with one weight and one delay of each synapse.
#pragma once
#include "check.h"
#include "problem.h"

namespace lsnn::test {

inline std::vector<Case> synapse_cases() {
  const unsigned paper = 1u << SIGMA | 1u << P | 1u << ETA;
  std::vector<Case> all;
  for (int row = 0; row < n_rows; row++) {
    const auto surrogate = Surrogate(row % n_surrogates);
    for (const std::vector<int64_t>& delays : {std::vector<int64_t>{}, {0, 3, 20}}) {
      for (bool smooth : {false, true})
        all.push_back({.row = row, .surrogate = surrogate, .delays = delays, .n_ref = row % 3, .smooth = smooth, .all_delays = true});
      const std::vector<int64_t> few(delays.begin(), delays.begin() + (int64_t)std::min<size_t>(delays.size(), 2));
      all.push_back({.row = row, .surrogate = surrogate, .T = 6, .B = 2, .N = 3, .delays = few, .smooth = true, .stop = false,
                     .all_delays = true});
    }
  }
  const int64_t shapes[][2] = {{0, 3}, {1, 1}, {15, 9}, {129, 2}, {6, 33}};  // T, B
  for (auto [T, B] : shapes)
    for (int64_t N : {1, 33, 65})
      for (const std::vector<int64_t>& delays : {std::vector<int64_t>{}, {7}, {1, 40}, {0, 1, 2, 3}}) {  // also longer than T
        all.push_back({.T = T, .B = B, .N = N, .delays = delays, .n_ref = B % 3, .want = 0, .zero = paper, .all_delays = true});
        all.push_back({.row = int((N + B) % n_rows), .surrogate = Surrogate::gaussian, .T = T, .B = B, .N = N, .delays = delays,
                       .all_delays = true});
      }
  for (int layout = 1; layout <= 4; layout++)
    for (int64_t N : {1, 7, 33})
      for (const std::vector<int64_t>& delays : {std::vector<int64_t>{}, {1, 2, 6}})
        all.push_back({.row = layout, .T = 20, .B = 5, .N = N, .delays = delays, .layout = layout, .all_delays = true});
  for (double density : {0.0, 0.02})  // matrices that are zero, mostly or altogether
    for (bool large : {false, true})
      all.push_back({.T = 20, .B = large ? 5 : 33, .N = large ? 220 : 33, .delays = {0, 1, 2, 5, 9}, .n_ref = 1, .want = 0, .zero = paper,
                     .density = density, .all_delays = true});
  all.push_back({.N = 40, .delays = {0, 4}, .absent = set_of(gw), .all_delays = true});
  return all;
}

// At the ends of slices, warps and shared memories of the CUDA kernels; for the paper's network, which has kernels of its own;
// one item after the other.
inline std::vector<Case> synapse_kernel_cases() {
  const unsigned paper = 1u << SIGMA | 1u << P | 1u << ETA;
  const uint64_t traces = set_of(trace_v, trace_a, trace_A, gv, ga, gA);
  std::vector<Case> all;
  for (const std::vector<int64_t>& delays : {std::vector<int64_t>{}, {1, 3, 4}}) {
    for (int64_t N : {64, 129, 257, 512}) {
      const int64_t T = N > 300 ? 6 : 20, B = N > 300 ? 2 : 5;
      all.push_back({.row = int(N % n_rows), .surrogate = Surrogate(N % n_surrogates), .T = T, .B = B, .N = N, .delays = delays,
                     .all_delays = true});
    }
    for (int64_t N : {64, 100, 256})
      all.push_back({.T = 150, .B = 3, .N = N, .delays = delays, .n_ref = N % 3, .want = 0, .zero = paper, .absent = traces,
                     .all_delays = true});
    for (int64_t T : {3, 4}) all.push_back({.T = T, .B = 38, .N = 40, .delays = delays, .all_delays = true});
  }
  for (int64_t N : {1537, 2100}) all.push_back({.T = 3, .B = 1, .N = N, .delays = {}, .n_ref = 1, .all_delays = true});
  for (bool all_delays : {false, true}) {  // more delays than one launch packs
    all.push_back({.T = 80, .B = 2, .N = 9, .delays = std::vector<int64_t>(70), .all_delays = all_delays});
    for (size_t d = 0; d < 70; d++) all.back().delays[d] = (int64_t)d;
  }
  return all;
}

// With a projection, a readout and checkpoints.
inline std::vector<Case> synapse_cases_around() {
  std::vector<Case> all;
  for (int64_t N : {1, 33, 65})
    for (int64_t B : {1, 5, 33})
      for (const std::vector<int64_t>& delays : {std::vector<int64_t>{}, {0, 3}})
        all.push_back({.row = int((N + B) % n_rows), .T = 70, .B = B, .N = N, .delays = delays, .n_ref = B % 2, .smooth = N + B == 38,
                       .all_delays = true});
  return all;
}

// Forward and backward pass into `r`, by whatever is tested.
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

// One weight and one delay of each synapse against a matrix for each delay, where all its other weights are zero.
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
  each([&](int64_t s, int64_t j, int64_t n) { spread.b[w][to.at(s, j, n)] = given.b[w][w_strides(given.c).at(0, j, n)]; });
  run(spread);
  check_same("a matrix for each delay", spread, given, z, gw);
  check_same("a matrix for each delay", spread, given, gv0, n_names);
  check_same_bits("a matrix for each delay", spread, given);
  bool same = true;
  each([&](int64_t s, int64_t j, int64_t n) {
    same = same && (!given.at(gw) || given.b[gw][j * c.N + n] == spread.b[gw][(s * c.N + j) * c.N + n]);
  });
  check(same, "a matrix for each delay: gradients of w");
}

// Whichever of the two a run invites to; strides of 0 have no room for weights of their own.
template <class T> void check_synapses(const Run<T>& r, RunBoth<T> run) {
  if (r.c.delays.empty()) check_alone(r, run);
  else if (r.c.S() > 1 && !r.c.all_delays && r.c.layout < 3) check_spread(r, run);
}

}  // namespace lsnn::test
