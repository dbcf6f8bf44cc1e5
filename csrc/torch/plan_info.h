// _C.plan: which CUDA kernels would run a layer, and why.
#pragma once
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

namespace lsnn::binding {

namespace py = pybind11;

inline constexpr const char* plan_text =
    "The CUDA kernels that would run a layer of T steps, B items, N neurons, as a dict: for both\n"
    "directions the design, its kernels, 'general' or those made for the model 'lsnn', its "
    "launch,\n"
    "'why' it was chosen, and under 'considered' for each design, and for 'lsnn', the cycles of a\n"
    "step by crude formulas (no measurement, see docs/kernels.md), or why it cannot run.\n\n"
    "delays: distinct extra delays, ascending. dtype: of the numbers. weights: how they are\n"
    "stored, bfloat16 or as dtype.\n"
    "spikes, active: expected shares of neurons that fire, and that are active, in a step.\n"
    "device: h100, a100, ... or None for the current device.\n"
    "options: in the order of _C.options; none: as the environment says.\n"
    "clusters: of 2, 4 and 8 blocks that the device takes at once, as its runtime says; 0: none;\n"
    "-1 or left out: so many as it has SMs for, or as the current device says.\n"
    "model: of the table of models; a call that asks for traces takes the general kernels.\n"
    "bf16_parts: bfloat16 numbers that may stand for a factor of a product backwards, 1 or 2; 0:\n"
    "it is not rounded.";

inline constexpr const char* costs_text =
    "What the plan's formulas count with: by name a number, its unit, and where it is from; see\n"
    "csrc/cuda/costs.h.";
py::dict costs();

py::dict plan(int64_t T, int64_t B, int64_t N, std::vector<int64_t> delays,
              const std::string& dtype, const std::string& weights, bool smooth, double spikes,
              double active, const std::optional<std::string>& device,
              const std::vector<int64_t>& options, const std::vector<int>& clusters,
              const std::string& model, int64_t bf16_parts);

}  // namespace lsnn::binding
