// The table of cases of the C++ test programs.
#pragma once
#include "filtered.h"
#include "synapses.h"

namespace lsnn::test {

// Small enough for finite differences of all numbers.
inline Case small_smooth_case(int model, Surrogate surrogate,
                              const std::vector<int64_t>& lengths = {}) {
  return {.model = model,
          .surrogate = surrogate,
          .T = 6,
          .B = 2,
          .N = 3,
          .delays = {0, 2},
          .n_ref = model % 2,
          .smooth = true,
          .detach = false,
          .lengths = lengths};
}

// Items of unequal length: in one tile and in several, ending at or next to chunks of 16 and
// segments of 128 steps, without a step, all equal; with state carried past the end: delays,
// counters, real spikes, gradients of the last state.
inline std::vector<Case> table_of_lengths() {
  const unsigned paper = 1u << SIGMA | 1u << P | 1u << ETA;
  const uint64_t traces = set_of(trace_v, trace_a, trace_A, gv, ga, gA);
  std::vector<Case> all;
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{17, 17, 17}, {17, 9, 0}, {16, 15, 1}, {4, 4, 0}, {0, 0, 0}})
    for (unsigned zero : {0u, paper}) {
      all.push_back({.want = zero ? 0 : every, .zero = zero, .lengths = lengths});
      all.push_back({.delays = {0, 3, 20}, .n_ref = 2, .zero = zero, .lengths = lengths});
      all.push_back(
          {.delays = {2, 5}, .n_ref = 1, .smooth = true, .zero = zero, .lengths = lengths});
    }
  for (int64_t length : {0, 1, 16, 17, 20})
    all.push_back({.T = 20, .B = 1, .N = 40, .delays = {1}, .n_ref = 2, .lengths = {length}});
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{6, 3}, {5, 0}})
    for (int model : {0, 3, 7, 14})
      all.push_back(small_smooth_case(model, Surrogate(model % n_surrogates), lengths));
  for (int model = 0; model < n_models; model++)
    all.push_back({.model = model,
                   .surrogate = Surrogate(model % n_surrogates),
                   .T = 20,
                   .B = 5,
                   .delays = {0, 3},
                   .n_ref = model % 3,
                   .smooth = model % 4 == 3,
                   .lengths = drawn_lengths(20, 5)});
  const std::vector<int64_t> ends = {260, 257, 256, 255, 145, 144, 129, 128, 127, 113,
                                     112, 111, 17,  16,  15,  2,   1,   0,   0};
  for (int64_t N : {33, 64})
    for (unsigned zero : {0u, paper}) {
      const uint64_t absent = zero ? traces : 0;
      const unsigned want = zero ? 0 : every;
      all.push_back({.T = 260,
                     .B = 19,
                     .N = N,
                     .n_ref = 3,
                     .want = want,
                     .zero = zero,
                     .absent = absent,
                     .lengths = ends});
      all.push_back({.T = 260,
                     .B = 19,
                     .N = N,
                     .delays = {0, 40},
                     .want = want,
                     .zero = zero,
                     .absent = absent,
                     .lengths = ends});
    }
  for (int64_t B : {5, 9, 38, 47})
    for (double width : {0.02, 1.0})
      for (double density : {0.1, 1.0}) {
        const std::vector<int64_t> lengths = drawn_lengths(40, B);
        all.push_back({.T = 40,
                       .B = B,
                       .N = 70,
                       .n_ref = B % 2,
                       .want = 0,
                       .zero = paper,
                       .width = width,
                       .density = density,
                       .lengths = lengths});
        all.push_back({.model = int(B % n_models),
                       .T = 40,
                       .B = B,
                       .N = 40,
                       .delays = {0, 2},
                       .width = width,
                       .density = density,
                       .lengths = lengths});
      }
  for (const std::vector<int64_t>& delays : {std::vector<int64_t>{}, {0, 3}})
    for (bool smooth : {false, true})
      all.push_back({.model = 3,
                     .T = 20,
                     .B = 9,
                     .delays = delays,
                     .n_ref = 1,
                     .smooth = smooth,
                     .all_delays = true,
                     .lengths = drawn_lengths(20, 9)});
  for (int layout : {1, 2, 3, 4})
    all.push_back(
        {.T = 20, .B = 5, .N = 36, .delays = {1}, .layout = layout, .lengths = {20, 16, 7, 7, 0}});
  const uint64_t last = set_of(v_last, a_last, i_last, r_last, z_last),
                 of_last = set_of(gv_last, ga_last, gi_last, gz_last),
                 of_first = set_of(gv0, ga0, gi0, gz0);
  for (uint64_t absent : {traces, last, of_last, of_first, set_of(gw), set_of(gz)})
    all.push_back({.N = 40, .delays = {0, 4}, .n_ref = 1, .absent = absent, .lengths = {17, 3, 0}});
  return all;
}

inline std::vector<Case> table() {
  // coefficients that are 0 in the kernels of the paper's network
  const unsigned paper = 1u << SIGMA | 1u << P | 1u << ETA;
  const uint64_t traces = set_of(trace_v, trace_a, trace_A, gv, ga, gA),
                 last = set_of(v_last, a_last, i_last, r_last, z_last),
                 of_last = set_of(gv_last, ga_last, gi_last, gz_last),
                 of_first = set_of(gv0, ga0, gi0, gz0);
  std::vector<Case> all;
  for (int model = 0; model < n_models; model++) {
    const auto surrogate = Surrogate(model % n_surrogates);
    for (bool smooth : {false, true})
      all.push_back({.model = model,
                     .surrogate = surrogate,
                     .delays = {0, 3, 20},
                     .n_ref = 2,
                     .smooth = smooth});
    all.push_back(small_smooth_case(model, surrogate));
  }
  for (int s = 0; s < n_surrogates; s++)
    for (int model : {0, 7})
      all.push_back({.model = model,
                     .surrogate = Surrogate(s),
                     .T = 6,
                     .B = 2,
                     .N = 3,
                     .smooth = true,
                     .detach = false});

  // Vectors of 2 to 16 numbers, words of 32 spikes, tiles of 1 to 16 items, chunks of 16 and
  // segments of 128 steps end here.
  const int64_t sizes[][3] = {{0, 0, 1},    {0, 3, 33},   {1, 0, 33},   {1, 1, 1},    {1, 33, 220},
                              {15, 9, 31},  {15, 33, 65}, {17, 33, 32}, {17, 9, 220}, {16, 4, 64},
                              {128, 2, 5},  {129, 1, 65}, {129, 3, 1},  {129, 9, 31}, {129, 1, 220},
                              {260, 3, 33}, {260, 9, 32}};
  int model = 0;
  for (auto [T, B, N] : sizes) {
    all.push_back({.T = T, .B = B, .N = N, .n_ref = T % 3, .want = 0, .zero = paper});
    all.push_back({.model = model++ % n_models,
                   .surrogate = Surrogate::gaussian,
                   .T = T,
                   .B = B,
                   .N = N,
                   .delays = {0, 3},
                   .n_ref = 1});
    all.push_back({.model = model++ % n_models,
                   .surrogate = Surrogate::arctan,
                   .T = T,
                   .B = B,
                   .N = N,
                   .delays = {2},
                   .zero = paper});
    all.push_back({.model = model++ % n_models,
                   .surrogate = Surrogate::sigmoid,
                   .T = T,
                   .B = B,
                   .N = N,
                   .smooth = true});
  }
  // sequences shorter and longer than the delays, the ring of a chunk and the state
  for (int64_t T : {1, 15, 60, 150})
    for (const std::vector<int64_t>& delays :
         {std::vector<int64_t>{1}, {40}, {5, 40}, {0, 1, 2, 3, 7}, {16, 17}})
      for (unsigned zero : {0u, paper})
        all.push_back({.T = T,
                       .N = 34,
                       .delays = delays,
                       .n_ref = 5,
                       .smooth = T == 60 && !zero,
                       .want = zero ? 0 : every,
                       .zero = zero});
  for (int layout = 1; layout <= 4; layout++)
    for (int r : {0, 8, 14})
      for (int64_t N : {1, 7, 33})
        all.push_back({.model = r, .T = 20, .B = 5, .N = N, .delays = {1, 2}, .layout = layout});
  for (uint64_t absent :
       {traces, last, of_last, of_first, set_of(gw), set_of(gz),
        traces | last | of_last | of_first | set_of(gw), traces | set_of(gz, gw),
        of_last | set_of(gz), set_of(trace_a, gA, v_last, z_last, gi_last, gz_last, ga0, gz0)})
    for (bool smooth : {false, true})
      for (unsigned want : {0u, every})
        all.push_back({.N = 40,
                       .delays = {0, 4},
                       .n_ref = 1,
                       .smooth = smooth,
                       .want = want,
                       .absent = absent});
  // a single gradient; a coefficient that is 0
  for (int which = 0; which < n_coefficients; which++)
    for (unsigned zero : {0u, paper, 1u << which & ~(1u << KAPPA | 1u << WIDTH)})
      all.push_back({.model = which * 2,
                     .surrogate = Surrogate::exponential,
                     .T = 150,
                     .N = 9,
                     .want = 1u << which,
                     .zero = zero});
  // each model with its own surrogate and the terms of specialised kernels: none, with fixed and
  // with learned coefficients, a synapse, p and eta, all
  for (int model = 0; model < n_models; model++)
    for (const auto& [zero, want] : std::initializer_list<std::pair<unsigned, unsigned>>{
             {paper, 0},
             {paper, every & ~paper},
             {paper & ~(1u << SIGMA), model % 2 ? 0 : every & ~(1u << P | 1u << ETA)},
             {1u << SIGMA, model % 2 ? every & ~(1u << SIGMA) : 0},
             {0, every}})
      all.push_back({.model = model,
                     .surrogate = models[model].surrogate,
                     .T = 35,
                     .B = 2 + model % 3,
                     .N = 41,
                     .n_ref = model % 2,
                     .want = want,
                     .zero = zero});
  // a cutoff of the surrogate
  for (int model = 0; model < n_models; model++)
    all.push_back({.model = model,
                   .surrogate = Surrogate(model % n_surrogates),
                   .T = 40,
                   .B = 5 + 11 * (model % 3),
                   .N = 40 + model % 2,
                   .n_ref = model % 3 % 2,
                   .want = model % 4 ? 0 : every,
                   .cutoff = 0.3 + 0.1 * (model % 5)});
  for (int r : {0, 1, 14, 15}) {
    all.push_back({.model = r, .n_ref = 0, .first_r = 4});
    // thresholds below 0
    all.push_back(
        {.model = r, .surrogate = Surrogate::fast_sigmoid, .zero = 1u << BETA, .theta = -1});
  }
  for (double width : {0.02, 0.3})  // gradients pass through few spikes only
    for (int64_t B : {1, 5, 9, 38, 47})
      for (int64_t N : {15, 40}) {
        all.push_back(
            {.T = 20, .B = B, .N = N, .n_ref = B % 2, .want = 0, .zero = paper, .width = width});
        all.push_back({.model = 2 * int(B % 8),
                       .surrogate = Surrogate::boxcar,
                       .T = 20,
                       .B = B,
                       .N = N,
                       .delays = {0, 1},
                       .width = width});
        all.push_back({.model = 7,
                       .T = 20,
                       .B = B,
                       .N = N,
                       .delays = {3},
                       .n_ref = 2,
                       .smooth = true,
                       .width = width});
      }
  for (int64_t N : {1, 33, 220})  // few synapses: none, some rows without one
    for (int64_t B : {1, 5, 17, 33})
      for (double density : {0.0, 0.02, 0.2}) {
        all.push_back(
            {.T = 20, .B = B, .N = N, .n_ref = 1, .want = 0, .zero = paper, .density = density});
        if (N < 200)
          all.push_back({.model = int(B % n_models),
                         .T = 20,
                         .B = B,
                         .N = N,
                         .delays = {0, 1, 2, 5},
                         .density = density});
      }
  for (const Case& c : synapse_cases()) all.push_back(c);
  for (const Case& c : table_of_lengths()) all.push_back(c);
  // Enough tiles, delays and neurons for groups of several tiles in sums of weight gradients, see
  // run.cpp.
  all.push_back(
      {.T = 1, .B = 176, .N = 440, .delays = std::vector<int64_t>(16), .want = 0, .zero = paper});
  for (int64_t d = 0; d < 16; d++) all.back().delays[d] = d;
  all.back().all_delays = true;
  return all;
}

// For the CPU kernels: the table, and constant thresholds with unbounded surrogates, where nothing
// is replayed before the adjoint.
inline std::vector<Case> cpu_table() {
  std::vector<Case> all = table();
  const Case largest = all.back();
  all.pop_back();
  const unsigned varies = 1u << BETA | 1u << ETA, reads = varies | 1u << RHO | 1u << SIGMA;
  for (int model = 0; model < n_models; model++) {
    const int64_t T = model % 11 ? 35 : 145;
    all.push_back({.model = model,
                   .surrogate = Surrogate(2 + model % (n_surrogates - 2)),
                   .T = T,
                   .B = 5,
                   .N = 33 + model % 2,
                   .delays = {0, 3},
                   .smooth = model % 7 == 6,
                   .want = model % 2 ? 0 : every & ~reads,
                   .zero = varies,
                   .lengths = model % 3 ? std::vector<int64_t>{} : drawn_lengths(T, 5)});
  }
  for (const Case& c : filtered_cases()) all.push_back(c);
  // few synapses with delays so far apart that their columns exceed 16 bits
  all.push_back({.T = 308,
                 .B = 4,
                 .N = 220,
                 .delays = {0, 1, 4, 300},
                 .want = 0,
                 .zero = 1u << SIGMA | 1u << P | 1u << ETA,
                 .density = 0.05});
  all.push_back(largest);
  return all;
}

// For the CUDA kernels: the table, and sizes at the ends of their warps, slices and shared memory;
// without the largest case.
inline std::vector<Case> kernel_table() {
  const unsigned paper = 1u << SIGMA | 1u << P | 1u << ETA;
  std::vector<Case> all = table();
  all.pop_back();
  for (int64_t N : {1, 31, 32, 33, 64, 65, 127, 128, 129, 220, 236, 237, 255, 257, 512, 1024})
    for (int64_t B : {1, 5}) {
      const int64_t T = N > 300 ? 6 : 20, most = N > 300 ? 2 : B;
      all.push_back({.T = T, .B = most, .N = N, .n_ref = 2, .want = 0, .zero = paper});
      all.push_back({.model = int(N % n_models),
                     .surrogate = Surrogate(N % n_surrogates),
                     .T = T,
                     .B = most,
                     .N = N,
                     .delays = {B % 2, 3}});
    }
  // Layers of the paper's network, which has its own kernels: full quads, no traces.
  const uint64_t traces = set_of(trace_v, trace_a, trace_A, gv, ga, gA);
  for (int64_t N : {4, 32, 36, 64, 100, 128, 160, 220, 236, 256, 512, 1024})
    for (int layout : {0, 1, 3})
      for (int64_t n_ref : {0, 3}) {
        const int64_t T = N > 300 ? 7 : N > 128 ? 25 : 150, B = N > 300 ? 2 : 3 + layout;
        const std::vector<int64_t> delays = n_ref    ? std::vector<int64_t>{0}
                                            : layout ? std::vector<int64_t>{layout}
                                                     : std::vector<int64_t>{0, 5};
        all.push_back({.T = T,
                       .B = B,
                       .N = N,
                       .delays = delays,
                       .n_ref = n_ref,
                       .layout = layout,
                       .want = 0,
                       .zero = paper,
                       .absent = traces});
      }
  // more than a lane's quad for each neuron
  all.push_back({.T = 3, .B = 1, .N = 2100, .n_ref = 1});
  // Lengths are passed to the device in several launches.
  all.push_back({.T = 5, .B = 300, .N = 5, .lengths = drawn_lengths(5, 300)});
  // Several items in turn, with sequences so short that the buffers of a cluster still hold steps
  // of the item before.
  for (int64_t T : {3, 4}) {
    all.push_back({.T = T, .B = 38, .N = 40, .want = 0, .zero = paper});
    all.push_back({.T = T, .B = 38, .N = 40, .delays = {0, 3}});
  }
  for (const Case& c : synapse_kernel_cases()) all.push_back(c);
  for (Name one : {trace_v, trace_a, trace_A, gv, ga, gA})  // aligned, except one of them
    all.push_back({.N = 64, .want = 0, .zero = paper, .absent = traces & ~set_of(one)});
  // only x is aligned
  all.push_back({.N = 33, .layout = 2, .want = 0, .zero = paper, .absent = traces});
  // smooth spikes of the paper's network with one delay
  all.push_back({.T = 20, .B = 5, .N = 36, .smooth = true, .want = 0, .zero = paper});
  // no synapse from a neuron onto itself
  all.push_back({.T = 20, .B = 5, .N = 68, .want = 0, .zero = paper, .autapses = false});
  all.push_back({.T = 20, .delays = {0, 2}, .layout = 1, .autapses = false});
  all.push_back({.T = 20, .delays = {1, 3}, .layout = 2, .all_delays = true, .autapses = false});
  return all;
}

}  // namespace lsnn::test
