// What may run a case of test_kernels.cpp, by the names that LSNN_DESIGN has there: the general
// kernels of a design, or those made for the paper's network, in one block or in a cluster.
#pragma once
#include "../alif.h"

namespace lsnn::test {

struct Route {
  const char* name;
  Design design;
  Kernels kernels;  // automatic: those of the paper's network

  bool is_lsnn() const { return kernels == Kernels::automatic; }
};
inline constexpr Route routes[] = {
    {"", Design::automatic, Kernels::general},  // none: all of them
    {"block", Design::block, Kernels::general},
    {"gather", Design::gather, Kernels::general},
    {"cluster", Design::cluster, Kernels::general},
    {"step", Design::step, Kernels::general},
    {"lsnn", Design::block, Kernels::automatic},
    {"lsnn_cluster", Design::cluster, Kernels::automatic},
};
inline constexpr int n_routes = sizeof routes / sizeof routes[0];

}  // namespace lsnn::test
