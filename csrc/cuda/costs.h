// Costs of the parts of a step on a GPU, in estimated clock cycles of an SM. costs.cpp ranks the
// kernels by them; they predict no time, and no GPU has confirmed any. _C.costs returns them, and
// bench/gpu/costs.py prints measurements of bench/gpu/primitives.cu next to them.
#pragma once

namespace lsnn::cuda {

// X(name, number, unit, origin). Counted: along machine code for sm_90, with published or assumed
// latencies.
#define LSNN_COSTS(X)                                                                            \
  X(forward_step, 1279, "cycles", "a step without its rows, with spike list: counted")           \
  X(backward_step, 3083, "cycles", "backwards, without product, with replays: counted")          \
  X(lsnn_step, 530, "cycles", "of the paper's forward kernel, with eight rows: counted")         \
  X(lsnn_gather_step, 775, "cycles", "of that with 16 rows in global memory: counted")           \
  X(lsnn_backward_step, 1010, "cycles", "of its backward kernel, with twelve rows: counted")     \
  X(lsnn_gradient_lanes, 4, "lanes", "of a warp of that load the same dL/dc")                    \
  X(lsnn_matrix_step, 565, "cycles", "of that by matrices in a cluster: counted")                \
  X(lsnn_matrix_word, 55, "cycles", "the same, for 32 neurons of a block")                       \
  X(lsnn_matrix_part, 30, "cycles", "the same, for each part of a factor")                       \
  X(lsnn_matrix_sent, 70, "cycles", "the same, in clusters of more than lsnn_matrix_blocks")     \
  X(lsnn_matrix_blocks, 4, "blocks", "to which a warp sends a part at once")                     \
  X(lsnn_matrix_product, 7, "cycles", "the same, for each mma of a warp and word of a block")    \
  X(lsnn_matrix_fragment, 2.5, "cycles", "the same, for one in shared memory")                   \
  X(lsnn_block_chain, 580, "cycles", "of that by matrices in a block: one warp, counted")        \
  X(lsnn_block_high_step, 260, "cycles", "the same of several warps: counted")                   \
  X(lsnn_block_high_warp, 200, "cycles", "the same, for each warp")                              \
  X(lsnn_block_medium_step, 640, "cycles", "the same with one part of a factor: counted")        \
  X(lsnn_block_medium_warp, 53, "cycles", "the same, for each warp")                             \
  X(shared_bytes, 128, "B/clk/SM", "rows from shared memory: limit of 32 banks")                 \
  X(l2_bytes, 25, "B/clk/SM", "rows from the L2 cache: assumed")                                 \
  X(exchange, 250, "cycles", "between the blocks of a cluster: assumed")                         \
  X(cluster_bytes, 12, "B/clk/SM", "from the other blocks of a cluster: published measurements") \
  X(two_launches, 9000, "cycles", "of the design step: assumed")                                 \
  X(product_macs, 77, "MAC/clk/SM", "of the library in float32, 60 % of the peak: assumed")

#define LSNN_COST_FIELD(name, number, unit, origin) double name = number;
struct Costs { LSNN_COSTS(LSNN_COST_FIELD) };
#undef LSNN_COST_FIELD
inline constexpr Costs costs{};

}  // namespace lsnn::cuda
