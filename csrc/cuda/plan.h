// Which kernels run a layer on a GPU: the policy, without any device. Sizes are bytes unless said.
#pragma once
#include <optional>
#include <string>

#include "shared.h"

namespace lsnn::cuda {

inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Device {
  int capability;         // compute capability: 90 is 9.0; of the code if it is for an older one
  int sms;         // SMs
  int64_t shared;         // shared memory that a block may have
  int most_ranks;         // blocks of a cluster, 1: none
  // Clusters of 2, 4 and 8 blocks that are on the GPU at once, as the runtime says, which knows how
  // many SMs of each part of the GPU are there; -1: not asked.
  int clusters[3] = {-1, -1, -1};

  // Blocks or clusters that are at work at the same time; 0: the GPU takes no such cluster.
  int teams(int ranks) const {
    const int most = sms / ranks > 1 ? sms / ranks : 1;
    const int asked = ranks == 1 ? -1 : clusters[ranks == 2 ? 0 : ranks == 4 ? 1 : 2];
    return asked < 0 || asked > most ? most : asked;
  }
};

// A device as code sees it that was compiled for this compute capability: an older one where the
// driver has translated PTX for the device, and then all that came later was left out of the code.
inline Device as_compiled(Device device, int capability) {
  if (capability < device.capability) device.capability = capability;
  if (capability < 90) device.most_ranks = 1;
  return device;
}

// Storage of numbers and weights.
enum class Storage { f64, f32, f32_bf16 };  // bf16: of the weights
LSNN_INLINE int64_t bytes_of_number(Storage s) { return s == Storage::f64 ? 8 : 4; }
LSNN_INLINE int64_t bytes_of_weight(Storage s) {
  return s == Storage::f64 ? 8 : s == Storage::f32 ? 4 : 2;
}

// What the user expects of the layer; it chooses between the designs and changes no result.
struct Activity {
  double spikes = 0.02;  // share of the neurons that fire in a step
  double active = 0.3;  // share of the neurons that are active
};

// A row of the coefficients as the caller has it: a number; or x of a tensor, or its decay
// exp(-dt / x) where dt is not 0; or, with a sign below 0, the number less that.
struct Row {
  double number = 0, dt = 0;
  const void* tensor = nullptr;  // null: the number alone
  int64_t stride = 0;  // from neuron to neuron; 0: one number for all
  int sign = 0;
};

// What the host knows of the coefficients, which then are taken for what is said here, whatever is
// in memory.
struct HostCoefficients {
  unsigned zero = 0;  // a bit each: 0 for every neuron; sigma, p and eta: no kernel has to look
  // [n_coefficients,N] written by the kernel that packs the layer, which makes them of the rows;
  // null: they are read
  void* made = nullptr;
  Row rows[n_coefficients] = {};
};

// How one direction is launched.
struct Pass {
  Design design = Design::step;
  int quads = 1;  // of a lane
  Shape shape{};
  int64_t blocks = 0;
  int64_t shared = 0;  // of a block
  const char* kernel = nullptr;  // of the paper's network, by its name below; null: a general one
};
struct Plan {
  Storage storage;
  Pass forward, backward;
  WeightTiles tiles;  // of the weight gradient
  HostCoefficients host = {};
  // By the kernels of lsnn_forward.cuh and lsnn_backward.cuh, where they run the layer in fewer
  // cycles. `forward` and `backward` are those of the general kernels: for calls that
  // by_lsnn() refuses, or whose coefficients the host does not know.
  std::optional<Pass> lsnn = std::nullopt, lsnn_backward = std::nullopt;
  // Of the weight gradient by tensor cores, where they can. `tiles` are then for the steps whose
  // spikes come before the sequence.
  std::optional<SpikeTiles> tensor_cores = std::nullopt;

  // Of both, in the order in which they are summed.
  int64_t slices(bool before) const {
    return tensor_cores ? tensor_cores->slices + before : tiles.slices;
  }
};
// Whether these may do the work of a call, as far as the host can tell.
inline bool by_lsnn(const ForwardArgs& f, const Plan& plan) {
  return plan.lsnn && !f.trace_v && !f.trace_a && !f.trace_A;
}
inline bool by_lsnn(const BackwardArgs& f, const Plan& plan) {
  return plan.lsnn_backward && !f.gv && !f.ga && !f.gA && !f.want && !f.saved.y_is_bf16;
}

// The pass that a design would use, or why it cannot run this layer on this GPU. `l` needs T, B, N,
// S, D, delays, smooth and whether `delay` is null; those of the paper's network the choices of the
// model and the surrogate, and `choose` the design and kernels of its options, too.
struct Possible {
  bool yes;
  Pass pass;
  std::string why;
};
Possible forward_pass(Design, const Device&, const Layer& l, Storage);
Possible backward_pass(Design, const Device&, const Layer& l, Storage);
// The kernels of the paper's network, by the names that _C.plan gives them.
struct LsnnKernel {
  const char* name;
  Possible (*pass)(const Device&, const Layer& l, Storage);
};
Possible lsnn_forward_block_pass(const Device&, const Layer& l, Storage);
Possible lsnn_forward_gather_pass(const Device&, const Layer& l, Storage);
inline constexpr LsnnKernel lsnn_forward_kernels[] = {{"lsnn", &lsnn_forward_block_pass},
                                                      {"lsnn, gather", &lsnn_forward_gather_pass}};
Possible lsnn_backward_block_pass(const Device&, const Layer& l, Storage);
Possible lsnn_backward_cluster_pass(const Device&, const Layer& l, Storage);
Possible lsnn_backward_matrix_pass(const Device&, const Layer& l, Storage);
Possible lsnn_backward_block_matrix_pass(const Device&, const Layer& l, Storage);
inline constexpr LsnnKernel lsnn_backward_kernels[] = {
    {"lsnn", &lsnn_backward_block_pass},
    {"lsnn, cluster", &lsnn_backward_cluster_pass},
    {"lsnn, matrices", &lsnn_backward_matrix_pass},
    {"lsnn, matrices in a block", &lsnn_backward_block_matrix_pass}};

// The storage with which the formulas below expect the backward pass to be fastest: that of the
// numbers, or weights in bfloat16 where the layer allows it.
Storage backward_storage(const Device&, const Layer& l, Storage);

// The designs that the formulas below expect to be fastest, or the one of the layer's options.
// Throws std::invalid_argument when that one cannot run the layer.
Plan choose(const Device&, const Layer& l, Storage, const Activity&);

// Whether the device and the code have bfloat16 for tensor cores.
inline bool has_tensor_cores(const Device& device) { return device.capability >= 80; }
// Of a product of spikes [K,M] with numbers [K,N] by tensor cores; as many slices of K as SMs can
// work on.
SpikeTiles spike_tiles(const Device&, int64_t M, int64_t N, int64_t K);

// Why tensor cores cannot make the weight gradient; nothing where they can.
std::string no_tensor_cores(const Device&, const Layer& l, Storage);

// Clock cycles of one step of the busiest SM, by crude formulas that only set the designs side by
// side. The models of docs/findings.md are finer; none is a measurement.
double forward_cycles(const Device&, const Layer& l, Storage, const Pass&, const Activity&);
double lsnn_cycles(const Device&, const Layer& l, Storage, const Pass&, const Activity&);
double backward_cycles(const Device&, const Layer& l, Storage, const Pass&, const Activity&);
double lsnn_backward_cycles(const Device&, const Layer& l, Storage, const Pass&, const Activity&);

}  // namespace lsnn::cuda
