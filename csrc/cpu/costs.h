// Measured costs of the algorithms for products and sums. fastest() in product.h selects a product
// by these costs; pack.h decides by them whether synapses are listed.
#pragma once
#include "layout.h"

namespace lsnn::cpu {
namespace {

// The product of the backward pass for one neuron of a tile and all delays, in units of a vector
// FMA of the dense product. The constants are a fit to times of each algorithm on a Zen 4 with
// AVX-512 and AVX2 (bench/products.py); they are overhead, except those of a vector of an item, and
// count double with vectors of half the bytes.
struct ProductCosts {
  // dense: loading a vector of weights for all items
  static constexpr double dense_load = 1.7;
  // active: sorting a neuron; a neuron with active items, and loading a vector of its weights
  static constexpr double sort = 5.4, active_row = 10.5, active_load = 1.9, bf16_load = 1;
  // active: a vector of an active item, and its sum over lanes
  static constexpr double active_vector = 1.5, bf16_vector = 0.75, lane_sum = 5.3;
  // sparse: testing a neuron; a row of synapses, one of its synapses, and writing an item
  static constexpr double test = 7, sparse_row = 13, synapse = 2, write = 1.6;

  double S, vectors;
  double overhead;  // a factor
  double entries = 0, groups = 0;  // of a neuron, where nonzero synapses are listed

  // bytes: of a vector
  LSNN_METHOD ProductCosts(const Layer& l, int64_t NP, int64_t lanes, int64_t bytes)
      : S((double)l.S),
        vectors((double)(NP / lanes)),
        overhead(64.0 / (double)bytes) {}

  LSNN_METHOD double dense(int64_t items) const {
    return S * vectors * ((double)items + overhead * dense_load);
  }
  // share: of active neurons, as if they were independent of each other
  LSNN_METHOD double active(int64_t items, double share, bool bf16) const {
    const double load = overhead * (bf16 ? bf16_load : active_load),
                 vector = bf16 ? bf16_vector : active_vector;
    return S * (any(items, share) * (load * vectors + overhead * active_row) +
                share * (double)items * (vector * vectors + overhead * lane_sum) + overhead * sort);
  }
  LSNN_METHOD double sparse(int64_t items, double share) const {
    const double row = synapse * entries + sparse_row * groups + write * (double)items;
    return overhead * (any(items, share) * row + test);
  }

 private:
  // The share of neurons with active items.
  LSNN_METHOD static double any(int64_t items, double share) {
    double none = 1;
    for (int64_t b = 0; b < items; b++) none *= 1 - share;
    return 1 - none;
  }
};

// Whether (1) adds the entries of a row faster one by one than as a row. A short row in cache is
// faster than the loop over its entries.
inline constexpr bool entries_are_summed_faster(double entries, int64_t NP, bool in_cache) {
  return in_cache ? entries + 10 < 0.9 * (double)NP / 16 : entries < 3 * (double)NP / 16;
}

// Whether the weight gradient is summed faster entry by entry than in rows, which are read and
// written in full. bytes: of the gradient.
inline constexpr bool entries_learn_faster(double entries, int64_t NP, int64_t bytes) {
  return entries < (bytes > 1 << 20 ? 5 : 3) * (double)NP / 16;
}

}  // namespace
}  // namespace lsnn::cpu
