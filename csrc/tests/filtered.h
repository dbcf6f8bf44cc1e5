// Cases with axonal delays and with masks of spikes.
#pragma once
#include "problem.h"

namespace lsnn::test {

inline std::vector<Case> filtered_cases() {
  std::vector<Case> all;
  auto add = [&](Case c, bool has_kernel, bool has_mask) {
    c.has_kernel = has_kernel;
    c.has_mask = has_mask;
    all.push_back(c);
  };
  const std::pair<bool, bool> both[] = {{true, false}, {false, true}, {true, true}};
  for (int model = 0; model < n_models; model++)
    for (auto [has_kernel, has_mask] : both) {
      const auto surrogate = Surrogate(model % n_surrogates);
      Case c{.model = model, .surrogate = surrogate, .T = 40, .delays = {0, 3, 20}, .n_ref = 2};
      add(c, has_kernel, has_mask);
      c.smooth = true;
      c.lengths = drawn_lengths(c.T, c.B);
      add(c, has_kernel, has_mask);
      c = {.model = model, .surrogate = surrogate, .T = 6, .B = 2, .N = 3, .delays = {0, 2}};
      c.smooth = true;
      c.detach = false;
      add(c, has_kernel, has_mask);
    }
  const int64_t sizes[][3] = {{0, 3, 33},  {3, 0, 33},   {1, 1, 1},    {15, 9, 31},  {17, 33, 32},
                              {40, 4, 65}, {16, 17, 64}, {129, 8, 33}, {129, 5, 220}};
  for (auto [T, B, N] : sizes)
    for (auto [has_kernel, has_mask] : both)
      for (const std::vector<int64_t>& delays :
           {std::vector<int64_t>{2}, {0, 1, 2, 3, 4, 5, 6, 7}, {16, 40}})
        add({.model = int(N % n_models), .T = T, .B = B, .N = N, .delays = delays, .n_ref = 1},
            has_kernel, has_mask);
  for (auto [has_kernel, has_mask] : both) {
    for (double density : {0.0, 0.02, 0.2})
      for (int64_t B : {2, 17})
        add({.T = 40, .B = B, .N = 65, .delays = {0, 1, 4}, .density = density}, has_kernel,
            has_mask);
    for (int layout = 1; layout <= 4; layout++)
      add({.T = 20, .B = 5, .N = 33, .delays = {1, 2}, .layout = layout}, has_kernel, has_mask);
    for (uint64_t absent : {set_of(gw), set_of(gz0), set_of(gkernel), set_of(gw, gkernel, gz0)})
      add({.N = 40, .delays = {0, 4}, .absent = absent}, has_kernel, has_mask);
    add({.T = 150, .B = 19, .N = 40, .delays = {0, 4}, .lengths = drawn_lengths(150, 19)},
        has_kernel, has_mask);
  }
  return all;
}

}  // namespace lsnn::test
