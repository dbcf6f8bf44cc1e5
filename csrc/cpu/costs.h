// Measured costs of the algorithms for products and sums. fastest() in backward.h selects a product
// by these costs and by the limits of product_active.h; pack.h decides by them whether synapses are
// listed.
#pragma once
#include "layout.h"

namespace lsnn::cpu {
namespace {

// The product of the backward pass for one neuron of a tile and all delays, in vector FMAs.
struct ProductCosts {
  // a nonzero synapse, for each vector of items
  static constexpr double synapse = 1.3;
  // overhead of a row of synapses
  static constexpr double sparse_row = 20;
  // each vector of the row of an active neuron, in T and in bfloat16
  static constexpr double active_vector = 1.4, bf16_vector = 0.7;
  // the sum over lanes at the end of such a row
  static constexpr double lane_sum = 8;

  double S, vectors, lanes;
  double entries = 0, groups = 0;  // of a neuron, where nonzero synapses are listed

  LSNN_METHOD double dense(int64_t items) const { return S * vectors * (double)items; }
  // share: of active neurons
  LSNN_METHOD double active(int64_t items, double share, bool bf16) const {
    const double row = (bf16 ? bf16_vector : active_vector) * vectors + lane_sum;
    return S * share * (double)items * row;
  }
  LSNN_METHOD double sparse(int64_t items) const {
    const int64_t numbers = items * 2 <= max_items ? max_items / 2 : max_items;
    const double vectors_of_items = (double)((numbers + (int64_t)lanes - 1) / (int64_t)lanes);
    return synapse * entries * vectors_of_items + sparse_row * groups;
  }
};

template <class T>
LSNN_INLINE ProductCosts product_costs(const Packed<T>& p, const Layer& l, int64_t lanes) {
  ProductCosts costs{(double)l.S, (double)(p.NP / lanes), (double)lanes};
  if (p.product.span) {
    costs.groups = (double)p.product.groups;
    costs.entries = (double)p.product.rows.start[p.product.groups * l.N] / (double)l.N;
  }
  return costs;
}

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
