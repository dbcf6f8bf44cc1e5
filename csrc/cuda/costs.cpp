// The formulas that rank the kernels, with the constants of costs.h.
#include "costs.h"

#include <algorithm>
#include <cmath>

#include "plan.h"

namespace lsnn::cuda {
namespace {

// Items of an SM, and the bytes of the rows that it reads in a step.
struct Load { double items, bytes; };
Load load(const Device& device, const Layer& l, bool wide, const Pass& p, double share) {
  const double items = double(l.B) / std::max(device.teams(p.shape.ranks), 1),
               at_hand = std::max(items, 1.0);
  const double row = double(padded(l.N)) * double(bytes_of_number(wide)) / p.shape.ranks;
  return {at_hand, at_hand * double(l.S) * share * double(l.N) * row};
}

// Rounds of items in a step by matrices.
double rounds_of(const Device& device, const Layer& l, const Pass& p) {
  const int64_t items = device.teams(p.shape.ranks) * items_of_block(p.shape);
  return double(std::max<int64_t>(ceiling(l.B, items), 1));
}
// A round in a cluster, for all warps of a block. Transfers between blocks overlap most of a step.
double matrix_step(const Layer& l, const Pass& p) {
  const int parts = p.shape.parts, of_kernel = words_of_kernel(l.N, parts);
  const auto words_of_block = double(words(p.shape.threads));
  const int products = of_kernel * parts * (parts + 1) / 2,
            in_shared = of_kernel * parts - held_fragments(of_kernel, parts);
  return costs.lsnn_matrix_step + words_of_block * costs.lsnn_matrix_word +
         parts * (costs.lsnn_matrix_part +
                  (p.shape.ranks > costs.lsnn_matrix_blocks ? costs.lsnn_matrix_sent : 0)) +
         words_of_block *
             (products * costs.lsnn_matrix_product + in_shared * costs.lsnn_matrix_fragment);
}

// A round in a block: the throughput of all warps, or the latency of one.
double block_matrix_step(const Pass& p) {
  const auto warps = double(words(p.shape.threads));
  const double all = p.shape.parts == most_parts_of_block
                         ? costs.lsnn_block_high_step + warps * costs.lsnn_block_high_warp
                         : costs.lsnn_block_medium_step + warps * costs.lsnn_block_medium_warp;
  return std::max(all, costs.lsnn_block_chain);
}

// Bytes of dL/dc of an item: each warp of a block loads all of it for its rows, some lanes the
// same.
double bytes_of_gradients(const Layer& l) {
  return costs.lsnn_gradient_lanes * double(words(l.N) * bytes_of_number(false) * padded(l.N));
}

// A step without its rows. Items of a round overlap; rounds do not.
double chain(double step, const Load& at, const Pass& p) {
  return step * std::ceil(at.items / p.shape.groups);
}
// The exchange of dL/dc between the blocks of a cluster.
double exchange(const Load& at, const Layer& l, const Pass& p) {
  const double all = at.items * double(l.N * bytes_of_number(false));
  return l.S ? chain(costs.exchange, at, p) + (all - all / p.shape.ranks) / costs.cluster_bytes : 0;
}
// The general kernels. step: without rows.
double general_cost(const Device& device, const Layer& l, const Pass& p, const Load& at,
                    double step) {
  const double steps = chain(step, at, p);
  switch (p.design) {
    case Design::block: return steps + at.bytes / costs.shared_bytes;
    case Design::gather: return steps + at.bytes / costs.l2_bytes;
    case Design::cluster: return steps + exchange(at, l, p) + at.bytes / costs.shared_bytes;
    default:
      return costs.two_launches +
             double(l.B * l.S) * double(l.N * l.N) / (costs.product_macs * device.sms);
  }
}
}  // namespace

double cost(bool forward, const Device& device, const Layer& l, bool wide, const Pass& p,
            const Activity& a) {
  if (p.shape.parts)
    return rounds_of(device, l, p) *
           (p.design == Design::cluster ? matrix_step(l, p) : block_matrix_step(p));
  const Load at = load(device, l, wide, p, forward ? a.spikes : a.active);
  if (!p.kernel)
    return general_cost(device, l, p, at, forward ? costs.forward_step : costs.backward_step);
  if (!forward)
    return chain(costs.lsnn_backward_step, at, p) +
           (at.bytes + at.items * bytes_of_gradients(l)) / costs.shared_bytes;
  return p.design == Design::gather
             ? chain(costs.lsnn_gather_step, at, p) + at.bytes / costs.l2_bytes
             : chain(costs.lsnn_step, at, p) + at.bytes / costs.shared_bytes;
}

}  // namespace lsnn::cuda
