// The kernels that can run a case of test_kernels.cpp, by their names in LSNN_DESIGN: the general
// kernels of a design, or those of the paper's network, in one block or in a cluster.
#pragma once
#include "../../alif.h"

namespace lsnn::test {

struct Route {
  const char* name;
  Design design;
  Kernels kernels;  // other than general: those of the paper's network
  int bf16_parts = exact_parts;

  bool is_lsnn() const { return kernels != Kernels::general; }
  // Whether matrices have exact factors. Then they are compared with rows, too.
  bool is_exact() const { return kernels == Kernels::matrices && bf16_parts == exact_parts; }
  // Tolerance of gradients relative to the largest of each. With one part both factors are off by
  // up to 2^-9, in each step that a gradient passes through the weights; in most cases, where
  // roundings of many neurons cancel, gradients are within 5e-3.
  double tolerance() const { return bf16_parts == 1 ? 5 * 0x1p-8 : 1e-4; }
};
inline constexpr Route routes[] = {
    {"", Design::automatic, Kernels::general},  // none: all of them
    {"block", Design::block, Kernels::general},
    {"gather", Design::gather, Kernels::general},
    {"cluster", Design::cluster, Kernels::general},
    {"step", Design::step, Kernels::general},
    {"lsnn", Design::block, Kernels::rows},
    {"lsnn_gather", Design::gather, Kernels::rows},
    {"lsnn_block_high", Design::block, Kernels::matrices, 2},
    {"lsnn_block_medium", Design::block, Kernels::matrices, 1},
    {"lsnn_highest", Design::cluster, Kernels::matrices, exact_parts},
    {"lsnn_high", Design::cluster, Kernels::matrices, 2},
    {"lsnn_medium", Design::cluster, Kernels::matrices, 1},
};
inline constexpr int n_routes = sizeof routes / sizeof routes[0];

}  // namespace lsnn::test
