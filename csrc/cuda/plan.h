// Selects the kernels for a layer on a GPU; needs no device. Sizes are in bytes by default.
#pragma once
#include <optional>
#include <span>
#include <string>

#include "shared.h"

namespace lsnn::cuda {

inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Device {
  int capability;  // compute capability, 90 is 9.0; of the code if that is older
  int sms;  // SMs
  int64_t shared;  // shared memory available to a block
  int most_ranks;  // blocks of a cluster, 1: none
  // Clusters of 2, 4 and 8 blocks that fit on the GPU at once, from the runtime, as it depends on
  // the SMs of each part of the GPU; -1: unknown.
  int clusters[3] = {-1, -1, -1};

  // Blocks or clusters that run concurrently; 0: such clusters do not fit.
  int teams(int ranks) const {
    const int most = sms / ranks > 1 ? sms / ranks : 1;
    const int asked = ranks == 1 ? -1 : clusters[ranks == 2 ? 0 : ranks == 4 ? 1 : 2];
    return asked < 0 || asked > most ? most : asked;
  }
};

// A device, limited to the features of code for this compute capability, which is older if the
// driver compiled PTX for the device.
inline Device as_compiled(Device device, int capability) {
  if (capability < device.capability) device.capability = capability;
  if (capability < 90) device.most_ranks = 1;
  return device;
}

// wide, here and below: numbers are float64, not float32.
LSNN_INLINE int64_t bytes_of_number(bool wide) { return wide ? 8 : 4; }

// Numbers of the packed weights, coefficients, flags and delays of a layer, see Packed.
inline int64_t packed_numbers(const Layer& l) {
  return (l.S * l.N + n_coefficients) * padded(l.N) + 1 + l.S;
}

// Expected activity, which affects the choice of designs but no result.
struct Activity {
  double spikes = 0.02;  // share of the neurons that fire in a step
  double active = 0.3;  // share of neurons that are active
};

// The source of a coefficient: a number; or x of a tensor, or exp(-dt / x) if dt is not 0; with
// sign -1 the number less that.
struct Row {
  double number = 0, dt = 0;
  const void* tensor = nullptr;  // null: `number`
  int64_t stride = 0;  // from neuron to neuron; 0: one number for all
  int sign = 0;
};

// Coefficients that the host knows; they override those in device memory.
struct HostCoefficients {
  unsigned zero = 0;  // a bit each: 0 for all neurons; for sigma, p and eta kernels need not check
  // [n_coefficients,N] computed from rows and written by the packing kernel; null: coefficients are
  // read from memory
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
  const char* kernel = nullptr;  // name of a paper's kernel, see below; null: a general one
};
struct Plan {
  bool wide;
  Pass forward, backward;
  WeightTiles tiles;  // of the weight gradient
  HostCoefficients host = {};
  // Of the kernels of lsnn_forward.cuh and lsnn_backward.cuh, if they cost less. `forward`
  // and `backward` are for the general kernels: for calls that by_lsnn() refuses, or whose
  // coefficients the host does not know.
  std::optional<Pass> lsnn = std::nullopt, lsnn_backward = std::nullopt;
  // Of the weight gradient by tensor cores, if supported. `tiles` are then for the steps whose
  // spikes come before the sequence.
  std::optional<SpikeTiles> tensor_cores = std::nullopt;

  // Slices of both, in the order of summation.
  int64_t slices(bool before) const {
    return tensor_cores ? tensor_cores->slices + before : tiles.slices;
  }
};
// Whether the paper's kernels support a call, as far as the host knows.
inline bool by_lsnn(const ForwardArgs& f, const Plan& plan) {
  return plan.lsnn && !f.trace_v && !f.trace_a && !f.trace_A;
}
inline bool by_lsnn(const BackwardArgs& f, const Plan& plan) {
  return plan.lsnn_backward && !f.gv && !f.ga && !f.gA && !f.want && !f.saved.y_is_bf16;
}

// The pass of a design, or why it cannot run this layer on this GPU. Reads T, B, N, S, D, delays,
// smooth and whether `delay` is null; the paper's kernels also read model and surrogate, and
// choose() the options `design` and `kernels`.
struct Possible {
  bool yes;
  Pass pass;
  std::string why;
};
inline constexpr Design forward_designs[] = {Design::block, Design::gather, Design::step},
                        backward_designs[] = {Design::block, Design::cluster, Design::gather,
                                              Design::step};
inline std::span<const Design> designs_of(bool forward) {
  return forward ? std::span<const Design>(forward_designs) : backward_designs;
}
// The design that the options of a layer request. Clusters only run backward.
inline Design requested_design(const Layer& l, bool forward) {
  return forward && l.options.design == Design::cluster ? Design::automatic : l.options.design;
}
Possible forward_pass(Design, const Device&, const Layer& l, bool wide);
Possible backward_pass(Design, const Device&, const Layer& l, bool wide);
// The kernels of the paper's network, by their names in _C.plan.
struct LsnnKernel {
  const char* name;
  Possible (*find)(const Device&, const Layer& l, bool wide);

  Possible pass(const Device& device, const Layer& l, bool wide) const {
    Possible found = find(device, l, wide);
    found.pass.kernel = name;
    return found;
  }
};
Possible lsnn_forward_block_pass(const Device&, const Layer& l, bool wide);
Possible lsnn_forward_gather_pass(const Device&, const Layer& l, bool wide);
inline constexpr LsnnKernel lsnn_forward_kernels[] = {{"lsnn", &lsnn_forward_block_pass},
                                                      {"lsnn, gather", &lsnn_forward_gather_pass}};
Possible lsnn_backward_block_pass(const Device&, const Layer& l, bool wide);
Possible lsnn_backward_matrix_pass(const Device&, const Layer& l, bool wide);
Possible lsnn_backward_block_matrix_pass(const Device&, const Layer& l, bool wide);
inline constexpr LsnnKernel lsnn_backward_kernels[] = {
    {"lsnn", &lsnn_backward_block_pass},
    {"lsnn, matrices", &lsnn_backward_matrix_pass},
    {"lsnn, matrices in a block", &lsnn_backward_block_matrix_pass}};
inline std::span<const LsnnKernel> lsnn_kernels_of(bool forward) {
  return forward ? std::span<const LsnnKernel>(lsnn_forward_kernels) : lsnn_backward_kernels;
}

// The fastest designs by the formulas below, or the one of the layer's options. Throws
// std::invalid_argument if that one cannot run the layer.
Plan choose(const Device&, const Layer& l, bool wide, const Activity&);

// Whether device and code support bfloat16 on tensor cores.
inline bool has_tensor_cores(const Device& device) { return device.capability >= 80; }
// Tiles of a product of spikes [K,M] with numbers [K,N] by tensor cores, with enough slices of K to
// occupy the SMs.
SpikeTiles spike_tiles(const Device&, int64_t M, int64_t N, int64_t K);

// Why tensor cores cannot compute the weight gradient; empty if they can.
std::string no_tensor_cores(const Device&, const Layer& l, bool wide);

// Relative costs of a step by rough formulas, which rank the kernels and predict no time: no GPU
// has confirmed them.
double cost(bool forward, const Device&, const Layer& l, bool wide, const Pass&, const Activity&);

}  // namespace lsnn::cuda
