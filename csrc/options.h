// What a test or a benchmark may force. It changes how a pass is computed, and no spike; 0, or
// `automatic`, leaves the choice to the library.
#pragma once
#include <cstdint>

namespace lsnn {

// How the backward pass of the CPU kernels multiplies, see fastest() and product() in
// cpu/backward.h: all of W; the rows of active neurons; these in bfloat16 with sums in float, where
// the processor has such products; the synapses that are not zero.
enum class ProductAlgorithm { automatic, dense, active, bf16, sparse };
inline constexpr const char* product_names[] = {"automatic", "dense", "active", "bf16", "sparse"};
inline constexpr int n_products = 5;

// How the CUDA kernels work, see cuda/sequence.cuh and cuda/step.cuh.
enum class Design { automatic, block, gather, cluster, step };
inline constexpr const char* design_names[] = {"automatic", "block", "gather", "cluster", "step"};
inline constexpr int n_designs = 5;

// Whether the CUDA kernels that are made for one model may run, see cuda/lsnn_forward.cuh, and
// tensor cores, see cuda/spike_product.cuh, or the general ones alone; or, of the former, those
// that multiply by matrices, or those that read rows of active neurons.
enum class Kernels { automatic, general, matrices, rows };
inline constexpr const char* kernels_names[] = {"automatic", "general", "matrices", "rows"};
inline constexpr int n_kernels = 4;

struct Options {
  ProductAlgorithm product = ProductAlgorithm::automatic;
  int64_t team_size = 0;  // threads that share the neurons of a tile; CPU kernels only
  int64_t l1_size = 0;  // bytes of the L1 data cache that a product counts on; CPU kernels only
  Design design = Design::automatic;
  Kernels kernels = Kernels::automatic;
};

}  // namespace lsnn
