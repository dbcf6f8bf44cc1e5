#include "plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "../spec.h"

namespace lsnn::cuda {
namespace {

// Slices of the steps and items of a weight gradient with `tiles` tiles.
int slices(const Device& device, int64_t tiles, int64_t items) {
  return (int)std::clamp<int64_t>(device.sms / tiles, 1, std::max<int64_t>(ceiling(items, 256), 1));
}

// Bytes of a structure.
template <template <class> class Shared>
int64_t shared_of(const Layer& l, bool wide, const Shape& shape, Design design) {
  const bool in_shared = design != Design::gather;
  Arena counted;
  if (wide) Shared<double>(counted, l, shape, in_shared);
  else Shared<float>(counted, l, shape, in_shared);
  return counted.used;
}

Possible impossible(const std::string& why) { return {false, {}, why}; }
Possible no_room(int ranks) {
  return impossible("the GPU has no room for a cluster of " + std::to_string(ranks) + " blocks");
}
Possible too_large(const Device& device, const Pass& p) {
  return impossible("a block needs " + std::to_string(p.shared) +
                    " bytes of shared memory, the GPU gives " + std::to_string(device.shared));
}

// block: at most; group: at most, unless its neurons need more; neurons: of each thread
struct Threads { int64_t block, group, neurons = 4; };

// Steps whose dL/dc a block of the general kernels stores.
int64_t backward_slots(Design design, const Layer& l) { return l.D + (design == Design::cluster); }

// A kernel of a whole sequence, with the items of an SM at a time if shared memory holds them.
template <class Shared>
Possible sequence_pass(Design design, const Device& device, const Layer& l, int ranks,
                       Threads limit, int64_t slots, const Shared& shared) {
  Pass p{design, 1, {1, 0, ranks, (int)slots}, 0, 0};
  const Slice slice(l.N, ranks, 0);
  const int64_t lanes = ceiling(slice.width, limit.neurons);
  while (ceiling(lanes, 32 * p.quads) * 32 > limit.block) p.quads *= 4;
  const int most_quads = design == Design::gather ? 4 : 1;  // the others support one
  if (p.quads > most_quads)
    return impossible("a block holds at most " + std::to_string(4 * most_quads * limit.block) +
                      " neurons");
  const int64_t least = std::max<int64_t>(ceiling(lanes, 32 * p.quads) * 32, 32),
                teams = device.teams(ranks);
  if (teams == 0) return no_room(ranks);
  // Named barriers are 1 to 15; a group of one warp needs none. Rounds have equal numbers of items.
  const int64_t most_groups = least == 32 && limit.group <= 32
                                  ? limit.block / least
                                  : std::min<int64_t>(limit.block / least, 15);
  const int64_t items = std::max<int64_t>(ceiling(l.B, teams), 1),
                rounds = ceiling(items, most_groups);
  for (int64_t groups = ceiling(items, rounds); groups >= 1; groups--) {
    p.shape.groups = (int)groups;
    p.shape.threads = int(
        std::clamp<int64_t>(limit.block / groups / 32 * 32, least, std::max(least, limit.group)));
    p.shared = shared(p.shape);
    if (p.shared <= device.shared) {
      p.blocks = std::min(teams, ceiling(l.B, groups)) * ranks;
      return {true, p, ""};
    }
  }
  return too_large(device, p);
}

template <class Shared>
Possible any_pass(Design design, const Device& device, const Layer& l, bool wide, Threads limit,
                  int64_t slots, const Shared& shared) {
  if (design == Design::step) {
    return {true, {design, 1, {1, 256, 1, 0}, ceiling(l.B * 8 * words(l.N), 256), 0}, ""};
  }
  if (l.T >= int64_t(1) << 31) return impossible("it counts steps in 32 bits");
  if (design != Design::cluster) return sequence_pass(design, device, l, 1, limit, slots, shared);
  if (device.most_ranks < 2) return impossible("the GPU has no clusters");
  if (wide) return impossible("it only exchanges 32-bit values");
  Possible last = impossible("");
  for (int ranks = 2; ranks <= device.most_ranks && ranks <= words(l.N); ranks *= 2) {
    last = sequence_pass(design, device, l, ranks, limit, slots, shared);
    if (last.yes) return last;
  }
  return last.why.empty() ? impossible("a cluster needs at least two words of 32 neurons") : last;
}

Design fastest(bool forward, const Device& device, const Layer& l, bool wide,
               const Activity& activity) {
  const Design* best = nullptr;
  double least = 0;
  for (const Design& d : designs_of(forward)) {
    const Possible p =
        forward ? forward_pass(d, device, l, wide) : backward_pass(d, device, l, wide);
    const double c = p.yes ? cost(forward, device, l, wide, p.pass, activity) : 0;
    if (p.yes && (!best || c < least)) {
      best = &d;
      least = c;
    }
  }
  if (!best) throw std::invalid_argument("layer: expected a CUDA design that can run it, got none");
  return *best;
}

}  // namespace

Possible forward_pass(Design design, const Device& device, const Layer& l, bool wide) {
  return any_pass(
      design, device, l, wide, {most_threads_forward, 0}, l.D + 1,
      [&](const Shape& shape) { return shared_of<ForwardShared>(l, wide, shape, design); });
}
namespace {
// Why both directions of the paper's kernels refuse a layer; empty if they support it.
std::string lsnn_refuses(const Device& device, const Layer& l, bool wide, int64_t most_neurons) {
  if (l.options.kernels == Kernels::general) return "the general kernels were requested";
  if (wide) return "it requires float32 numbers";
  if (!same(l.model, PaperSpec::model) || l.smooth)
    return "it requires the model lsnn with binary spikes";
  if (l.S != 1) return "it requires one delay for all synapses";
  if (device.capability < 80) return "it requires compute capability 8.0";
  if (l.N > most_neurons)
    return "its warps hold at most " + std::to_string(most_neurons) + " neurons";
  if (l.T >= int64_t(1) << 31) return "it counts steps in 32 bits";
  return "";
}
// more: arguments of Shared after the shape.
template <class Shared, class... More>
Possible lsnn_sequence(Design design, const Device& device, const Layer& l, Threads limit,
                       int64_t slots, More... more) {
  return sequence_pass(design, device, l, 1, limit, slots, [&](const Shape& shape) {
    Arena counted;
    Shared(counted, l, shape, more...);
    return counted.used;
  });
}
Possible lsnn_forward_pass(Design design, const Device& device, const Layer& l, bool wide) {
  const bool in_shared = design == Design::block;
  const std::string refused =
      lsnn_refuses(device, l, wide, 128 * (in_shared ? most_warps_lsnn : most_warps_lsnn_gather));
  if (!refused.empty()) return impossible(refused);
  return lsnn_sequence<LsnnShared>(design, device, l, {most_threads_lsnn, 0}, l.D + 1, in_shared);
}
}  // namespace

Possible lsnn_forward_block_pass(const Device& device, const Layer& l, bool wide) {
  return lsnn_forward_pass(Design::block, device, l, wide);
}
Possible lsnn_forward_gather_pass(const Device& device, const Layer& l, bool wide) {
  return lsnn_forward_pass(Design::gather, device, l, wide);
}
namespace {
// The same for the backward kernels. parts: of a factor, for kernels by matrices, else 0.
std::string lsnn_backward_refuses(const Device& device, const Layer& l, bool wide,
                                  int64_t most_neurons, int parts) {
  if (l.options.kernels == Kernels::matrices && !parts) return "matrices were requested";
  if (l.options.kernels == Kernels::rows && parts) return "rows of active neurons were requested";
  if (parts && parts < l.bf16_parts && l.options.kernels != Kernels::matrices)
    return "it rounds products to bfloat16, which is not enabled";
  const std::string refused = lsnn_refuses(device, l, wide, most_neurons);
  return refused.empty() && l.surrogate != PaperSpec::surrogate
             ? "it requires the surrogate triangle"
             : refused;
}
// A pass by matrices; sets the shared memory and the blocks, at most one for each SM.
template <class Shared> Possible matrix_pass(const Device& device, const Layer& l, Pass pass) {
  Arena counted;
  Shared(counted, l, pass.shape);
  pass.shared = counted.used;
  const int ranks = pass.shape.ranks;
  pass.blocks =
      std::min<int64_t>(device.teams(ranks), ceiling(l.B, items_of_block(pass.shape))) * ranks;
  return pass.shared <= device.shared ? Possible{true, pass, ""} : too_large(device, pass);
}
}  // namespace

Possible lsnn_backward_block_pass(const Device& device, const Layer& l, bool wide) {
  const std::string refused =
      lsnn_backward_refuses(device, l, wide, 32 * most_warps_lsnn_backward, 0);
  if (!refused.empty()) return impossible(refused);
  return lsnn_sequence<LsnnBackwardShared>(Design::block, device, l,
                                           {most_threads_lsnn_backward, 0, 1}, l.D + 1);
}
Possible lsnn_backward_matrix_pass(const Device& device, const Layer& l, bool wide) {
  if (device.most_ranks < 2) return impossible("the GPU has no clusters");
  const int most_words =
      std::min(most_words_matrix * device.most_ranks, most_words_of_parts(l.bf16_parts));
  const std::string refused = lsnn_backward_refuses(device, l, wide, 32 * most_words, l.bf16_parts);
  if (!refused.empty()) return impossible(refused);
  auto pass_of = [&](int ranks) {
    const int words_of_block = Slice(l.N, ranks, 0).words;
    if (words_of_block > most_words_matrix)
      return impossible("a block holds at most " + std::to_string(32 * most_words_matrix) +
                        " neurons");
    if (device.teams(ranks) == 0) return no_room(ranks);
    Pass p{Design::cluster, 1, {groups_of_matrix, 32 * words_of_block, ranks, int(l.D + 3)}, 0, 0};
    p.shape.parts = l.bf16_parts;
    p.shape.items = pairs_of_lane;
    return matrix_pass<LsnnMatrixShared>(device, l, p);
  };
  auto cost_of = [&](const Possible& of) { return cost(false, device, l, wide, of.pass, {}); };
  // The number of blocks that costs least.
  Possible best = impossible("a cluster needs at least two words of 32 neurons");
  for (int ranks = 2; ranks <= device.most_ranks && ranks <= words(l.N); ranks *= 2) {
    const Possible p = pass_of(ranks);
    if (!best.yes || (p.yes && cost_of(p) < cost_of(best))) best = p;
  }
  return best;
}
Possible lsnn_backward_block_matrix_pass(const Device& device, const Layer& l, bool wide) {
  const int parts = std::min(l.bf16_parts, most_parts_of_block);
  const std::string refused =
      lsnn_backward_refuses(device, l, wide, 32 * most_warps_block_matrix, parts);
  if (!refused.empty()) return impossible(refused);
  Pass p{Design::block, 1, {1, int(32 * words(l.N)), 1, int(l.D + 1)}, 0, 0};
  p.shape.parts = parts;
  p.shape.items = pairs_of_lane;
  return matrix_pass<LsnnBlockMatrixShared>(device, l, p);
}
SpikeTiles spike_tiles(const Device& device, int64_t M, int64_t N, int64_t K) {
  SpikeTiles s;
  s.down = (int)ceiling(M, 32 * words_of_warp * warps_down);
  s.across = (int)ceiling(N, 32 * warps_across);
  s.slices = slices(device, std::max<int64_t>(s.count(), 1), K);
  return s;
}

std::string no_tensor_cores(const Device& device, const Layer& l, bool wide) {
  if (l.options.kernels == Kernels::general) return "the general kernels were requested";
  if (wide) return "they require float32 numbers";
  if (l.S != 1) return "they require one delay for all synapses";
  if (l.smooth) return "they require binary spikes";
  if (!has_tensor_cores(device)) return "they require compute capability 8.0";
  return "";
}
Possible backward_pass(Design design, const Device& device, const Layer& l, bool wide) {
  // Extra warps without neurons share the rows of the product.
  return any_pass(design, device, l, wide, {most_threads_backward(design != Design::gather), 256},
                  backward_slots(design, l), [&](const Shape& shape) {
                    return shared_of<BackwardShared>(l, wide, shape, design);
                  });
}

// Whether the layer's options allow a pass.
static bool may_take(const Layer& l, const Pass& p, bool forward) {
  const Design requested = requested_design(l, forward);
  return requested == Design::automatic || requested == p.design;
}
Plan choose(const Device& device, const Layer& l, bool wide, const Activity& activity) {
  Plan plan{wide, {}, {}, {}};
  auto design_of = [&](bool is_forward) {
    const Design requested = requested_design(l, is_forward);
    return requested != Design::automatic ? requested
                                          : fastest(is_forward, device, l, wide, activity);
  };
  const Design forward = design_of(true), backward = design_of(false);
  const Possible f = forward_pass(forward, device, l, wide),
                 b = backward_pass(backward, device, l, wide);
  for (const Possible& p : {f, b})
    if (!p.yes)
      throw std::invalid_argument("design: expected one that can run " + std::to_string(l.N) +
                                  " neurons with " + std::to_string(l.S) + " delays, got '" +
                                  design_names[(int)l.options.design] + "': " + p.why);
  plan.forward = f.pass;
  plan.backward = b.pass;
  // The kernel with the lowest cost, if lower than that of the general one.
  auto best_lsnn = [&](bool is_forward, const Pass& general) {
    std::optional<Pass> best;
    double least = cost(is_forward, device, l, wide, general, activity);
    for (const LsnnKernel& kernel : lsnn_kernels_of(is_forward)) {
      const Possible p = kernel.pass(device, l, wide);
      if (!p.yes || !may_take(l, p.pass, is_forward)) continue;
      const double c = cost(is_forward, device, l, wide, p.pass, activity);
      const bool is_forced = p.pass.shape.parts && l.options.kernels == Kernels::matrices;
      if (c >= least && (!is_forced || best)) continue;
      least = c;
      best = p.pass;
    }
    return best;
  };
  plan.lsnn = best_lsnn(true, plan.forward);
  plan.lsnn_backward = best_lsnn(false, plan.backward);

  // The largest tile of full words that fits in shared memory, and enough slices to occupy all SMs.
  WeightTiles& t = plan.tiles;
  const int64_t columns = std::min<int64_t>(ceiling(l.N, 32) * 32, 256), most = device.shared;
  t.columns = (int)columns;
  t.rows = (int)std::min<int64_t>(ceiling(l.N, 32) * 32, list_size);
  auto bytes = [&] {
    Arena counted;
    if (wide) WeightShared<double>(counted, t);
    else WeightShared<float>(counted, t);
    return counted.used;
  };
  while (bytes() > most && (t.rows > 32 || t.columns > 32))
    (t.rows > 32 ? t.rows : t.columns) -= 32;
  t.down = (int)ceiling(l.N, t.rows);
  t.across = (int)ceiling(l.N, t.columns);
  t.matrices = std::max((int)matrices(l), 1);
  t.slices = slices(device, t.count(), l.T * l.B);
  if (no_tensor_cores(device, l, wide).empty()) {
    plan.tensor_cores = spike_tiles(device, l.N, l.N, spike_products(l, l.delays[0]));
    plan.tensor_cores->parts = l.bf16_parts;
    t.slices = 1;
  }
  return plan;
}

}  // namespace lsnn::cuda
