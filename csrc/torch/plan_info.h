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
    "directions the design, its launch, and under 'considered' for each design the cycles of a\n"
    "step by crude formulas (no measurement, see docs/kernels.md), or why it cannot run.\n\n"
    "delays: distinct extra delays, ascending. dtype: of the numbers. weights: how they are\n"
    "stored, bfloat16 or as dtype.\n"
    "spikes, active: expected shares of neurons that fire, and that are active, in a step.\n"
    "device: h100, a100, ... or None for the current device.\n"
    "options: in the order of _C.options; none: as the environment says.";

py::dict plan(int64_t T, int64_t B, int64_t N, std::vector<int64_t> delays,
              const std::string& dtype, const std::string& weights, bool smooth, double spikes,
              double active, const std::optional<std::string>& device,
              const std::vector<int64_t>& options);

}  // namespace lsnn::binding
