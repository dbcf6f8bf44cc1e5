// _C.plan: which CUDA kernels would run a layer, and why.
#pragma once
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

namespace lsnn::binding {

namespace py = pybind11;

inline constexpr const char* plan_text =
    "The CUDA kernels for a layer of T steps, B items and N neurons, as a dict. For each "
    "direction:\n"
    "the design, its kernels ('general', or 'lsnn' for those of the model lsnn), the launch, "
    "'why'\n"
    "it was selected, and 'considered': for each design, and for the kernels of lsnn, its cost by\n"
    "rough formulas (not measured, see docs/kernels.md), or why it cannot run.\n\n"
    "delays: distinct extra delays, ascending. dtype: of the numbers.\n"
    "spikes, active: expected shares of neurons that fire, and that are active, in a step.\n"
    "device: h100, a100, ... or None for the current device.\n"
    "options: in the order of _C.options; empty: from the environment.\n"
    "clusters: of 2, 4 and 8 blocks that fit on the device at once; 0: none; -1 or left out: as\n"
    "reported by the current device, or limited only by the number of SMs.\n"
    "model: of the table of models; calls that return traces use the general kernels.\n"
    "bf16_parts: bfloat16 numbers that factors of backward products may be split into, 1 or 2; 0:\n"
    "factors are exact.";

inline constexpr const char* costs_text =
    "The constants of the plan's formulas: by name a number, its unit and its origin; see\n"
    "csrc/cuda/costs.h.";
py::dict costs();

py::dict plan(int64_t T, int64_t B, int64_t N, std::vector<int64_t> delays,
              const std::string& dtype, bool smooth, double spikes, double active,
              const std::optional<std::string>& device, const std::vector<int64_t>& options,
              const std::vector<int>& clusters, const std::string& model, int64_t bf16_parts);

}  // namespace lsnn::binding
