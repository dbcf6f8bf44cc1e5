#include "plan_info.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>

#include "../cuda/costs.h"
#include "../cuda/run.h"
#include "arguments.h"
#include "devices.h"

namespace lsnn::binding {
namespace {

using cuda::Device;
using cuda::Pass;

// The key of a pass among those considered.
const char* name_route(const Pass& p) { return p.kernel ? p.kernel : design_names[(int)p.design]; }

struct Named {
  const char* name;
  Device device;
};
// From NVIDIA's table of compute capabilities and the data sheets.
constexpr Named devices[] = {
    {"t4", {75, 40, 64 << 10, 1}},       {"a100", {80, 108, 163 << 10, 1}},
    {"rtx3090", {86, 82, 99 << 10, 1}},  {"rtx4090", {89, 128, 99 << 10, 1}},
    {"h100", {90, 132, 227 << 10, 8}},   {"b200", {100, 148, 227 << 10, 8}},
    {"rtx5090", {120, 170, 99 << 10, 8}}};

Device find_device(const std::optional<std::string>& name) {
  if (!name) {
    if (has_cuda) return cuda_device();
    throw std::runtime_error("device: expected a name, got None; this build has no CUDA kernels");
  }
  std::string known;
  for (const Named& c : devices) {
    if (*name == c.name) return c.device;
    known += std::string(known.empty() ? "" : ", ") + c.name;
  }
  throw std::invalid_argument("device: expected one of " + known +
                              ", or None for the current device, got '" + *name + "'");
}

bool is_wide(const std::string& dtype) {
  if (dtype == "float64") return true;
  if (dtype == "float32") return false;
  throw std::invalid_argument("dtype: expected float32 or float64, got '" + dtype + "'");
}

// Why a pass was chosen. considered: the cost of each design and of the paper's kernels, or why it
// is impossible.
std::string reason(const Pass& pass, const Layer& l, bool forward, const py::dict& considered) {
  const char* chosen = name_route(pass);
  if (pass.shape.parts && l.options.kernels == Kernels::matrices) return "matrices were requested";
  if (cuda::requested_design(l, forward) != Design::automatic)
    return pass.kernel ? "its design was requested" : "it was requested";
  std::string others, impossible;
  for (const auto& [key, found] : considered) {
    const std::string name = py::cast<std::string>(key);
    if (name == chosen) continue;
    if (py::isinstance<py::str>(found))
      impossible += "; not " + name + ": " + py::cast<std::string>(found);
    else
      others += (others.empty() ? " before " : ", ") + name + " with " +
                std::to_string((int64_t)py::cast<double>(found));
  }
  const auto cost = (int64_t)py::cast<double>(considered[chosen]);
  return "lowest cost by the formulas, " + std::to_string(cost) + others + impossible;
}

py::dict describe(const Pass& chosen, bool forward, const Device& device, const Layer& l, bool wide,
                  const cuda::Activity& a) {
  py::dict d, considered;
  d["design"] = design_names[(int)chosen.design];
  d["route"] = name_route(chosen);
  d["kernels"] = chosen.kernel ? "lsnn" : "general";
  d["blocks"] = chosen.blocks;
  d["items of a block"] = cuda::items_of_block(chosen.shape);
  d["threads of an item"] = chosen.shape.threads;
  d["blocks of a cluster"] = chosen.shape.ranks;
  d["quads of a lane"] = chosen.quads;
  d["shared memory"] = chosen.shared;
  auto cost_or_why = [&](const cuda::Possible& p) {
    return p.yes ? py::object(py::float_(cuda::cost(forward, device, l, wide, p.pass, a)))
                 : py::str(p.why);
  };
  for (const cuda::LsnnKernel& kernel : cuda::lsnn_kernels_of(forward))
    considered[kernel.name] = cost_or_why(kernel.pass(device, l, wide));
  for (const Design design : cuda::designs_of(forward))
    considered[design_names[(int)design]] =
        cost_or_why((forward ? cuda::forward_pass : cuda::backward_pass)(design, device, l, wide));
  d["considered"] = considered;
  d["why"] = reason(chosen, l, forward, considered);
  return d;
}

const Model& find_model(const std::string& name) {
  for (const Model& model : models)
    if (name == model.name) return model;
  throw std::invalid_argument("model: expected a model of the table, got '" + name + "'");
}

}  // namespace

py::dict costs() {
  py::dict all;
#define LSNN_SHOW_COST(name, number, unit, origin) \
  all[#name] = py::make_tuple(cuda::costs.name, unit, origin);
  LSNN_COSTS(LSNN_SHOW_COST)
  return all;
}

py::dict plan(int64_t T, int64_t B, int64_t N, std::vector<int64_t> delays,
              const std::string& dtype, bool smooth, double spikes, double active,
              const std::optional<std::string>& device_name, const Ints& options,
              const std::vector<int>& clusters_at_once, const std::string& model,
              int64_t bf16_parts) {
  if (T < 0 || B < 0 || N < 1 || !is_below(most_steps, {T}) || !is_below(most_steps, {B, N}) ||
      !is_below(offsets, {N, N}))
    throw std::invalid_argument(
        "T, B, N: expected 0 to 2^48 steps and neurons of all items, and 1 to 65535 neurons, got " +
        std::to_string(T) + ", " + std::to_string(B) + " and " + std::to_string(N));
  if (delays.empty() || delays[0] < 0 ||
      std::adjacent_find(delays.begin(), delays.end(), std::greater_equal<>()) != delays.end())
    throw std::invalid_argument("delays: expected ascending numbers >= 0, got " +
                                shape_text(delays.data(), delays.size()));
  Device device = find_device(device_name);
  if (clusters_at_once.size() > std::size(device.clusters))
    throw std::invalid_argument("clusters: expected at most 3 numbers, of 2, 4 and 8 blocks, got " +
                                std::to_string(clusters_at_once.size()));
  std::copy(clusters_at_once.begin(), clusters_at_once.end(), device.clusters);
  const bool wide = is_wide(dtype);
  const cuda::Activity activity{spikes, active};
  Layer l{};
  l.T = T;
  l.B = B;
  l.N = N;
  l.S = (int64_t)delays.size();
  l.D = 1 + delays.back();
  l.delays = delays.data();
  l.smooth = smooth;
  l.model = find_model(model);
  l.surrogate = models[0].surrogate;  // the only surrogate that the plan distinguishes
  static const int64_t no_delay = 0;
  // each synapse has one delay; the plan only tests for null
  l.delay = delays.size() > 1 ? &no_delay : nullptr;
  l.options = read_options(options);
  if (bf16_parts < 0 || bf16_parts >= exact_parts)
    throw std::invalid_argument("bf16_parts: expected 0, 1 or 2, got " +
                                std::to_string(bf16_parts));
  if (bf16_parts) l.bf16_parts = (int)bf16_parts;
  const Design requested = l.options.design;
  const cuda::Plan p = cuda::choose(device, l, wide, activity);
  py::dict d, of_device;
  of_device["capability"] = device.capability;
  of_device["SMs"] = device.sms;
  of_device["shared memory"] = device.shared;
  of_device["blocks of a cluster"] = device.most_ranks;
  py::dict clusters;
  for (int ranks = 2; ranks <= device.most_ranks; ranks *= 2)
    clusters[py::int_(ranks)] = device.teams(ranks);
  of_device["clusters at once"] = clusters;
  d["device"] = of_device;
  d["requested"] = requested == Design::automatic ? py::object(py::none())
                                                  : py::str(design_names[(int)requested]);
  d["forward"] = describe(p.lsnn ? *p.lsnn : p.forward, true, device, l, wide, activity);
  d["backward"] =
      describe(p.lsnn_backward ? *p.lsnn_backward : p.backward, false, device, l, wide, activity);
  py::dict tiles;
  const std::string why_not = cuda::no_tensor_cores(device, l, wide);
  tiles["kernels"] = p.tensor_cores ? "tensor cores" : "events";
  tiles["why"] = p.tensor_cores ? "supported" : "no tensor cores: " + why_not;
  const auto& by_cores = p.tensor_cores;
  tiles["rows"] = by_cores ? 32 * cuda::words_of_warp * cuda::warps_down : p.tiles.rows;
  tiles["columns"] = by_cores ? 32 * cuda::warps_across : p.tiles.columns;
  tiles["tiles"] = by_cores ? by_cores->count() : p.tiles.count();
  tiles["bfloat16 numbers"] = by_cores ? by_cores->parts : 0;  // that a float is split into
  tiles["slices"] = by_cores ? by_cores->slices : p.tiles.slices;
  d["weight gradient"] = tiles;
  return d;
}

}  // namespace lsnn::binding
