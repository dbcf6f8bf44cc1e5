// Options that tests and benchmarks may force. They change how a pass is computed, and no spike; 0,
// or `automatic`: the library chooses.
#pragma once
#include <cstdint>

namespace lsnn {

// Product of the backward pass on the CPU, see fastest() in cpu/product.h: all of W;
// the rows of active neurons; these in bfloat16 with sums in float, where the processor supports
// it; the nonzero synapses.
enum class ProductAlgorithm { automatic, dense, active, bf16, sparse };
inline constexpr const char* product_names[] = {"automatic", "dense", "active", "bf16", "sparse"};
inline constexpr int n_products = 5;

// Designs of the CUDA kernels, see cuda/sequence.cuh and cuda/step.cuh.
enum class Design { automatic, block, gather, cluster, step };
inline constexpr const char* design_names[] = {"automatic", "block", "gather", "cluster", "step"};
inline constexpr int n_designs = 5;

// CUDA kernels: `general` excludes those for one model, see cuda/lsnn_forward.cuh, and tensor
// cores, see cuda/spike_product.cuh. Of the former, `matrices` selects those that multiply
// matrices, `rows` those that read rows of active neurons.
enum class Kernels { automatic, general, matrices, rows };
inline constexpr const char* kernels_names[] = {"automatic", "general", "matrices", "rows"};
inline constexpr int n_kernels = 4;

struct Options {
  ProductAlgorithm product = ProductAlgorithm::automatic;
  int64_t team_size = 0;  // threads that share the neurons of a tile; CPU kernels only
  int64_t l1_size = 0;  // bytes of the L1 data cache for blocking products; CPU kernels only
  Design design = Design::automatic;
  Kernels kernels = Kernels::automatic;
};

}  // namespace lsnn
