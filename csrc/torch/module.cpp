// lsnn_ext._C: functions that do not take tensors. Importing it also registers the operators of
// *_op.cpp and *_ops.cpp.
#include <pybind11/stl.h>

#include <cstdlib>

#include "../alif.h"
#include "../cpu/block_cache.h"
#include "../cpu/counters.h"
#include "../cpu/run.h"
#include "../cuda/driver.h"
#include "../cuda/run.h"
#include "boundary.h"
#include "devices.h"
#include "neurons.h"
#include "options.h"
#include "plan_info.h"
#include "prepared_layer.h"
#include "signals.h"

namespace py = pybind11;

namespace {

py::list table() {  // the models, with the words of lsnn_ext/models.py
  using namespace lsnn;
  py::list all;
  for (const Model& m : models) {
    py::set detach;
    for (size_t s = 0; s < std::size(detach_words); s++)
      if (m.detach >> s & 1) detach.add(detach_words[s]);
    py::dict d;
    d["name"] = m.name;
    d["test"] = test_words[(int)m.test];
    d["ge"] = m.ge;
    d["scale"] = scale_words[(int)m.scale];
    d["reset"] = reset_words[(int)m.reset];
    d["when"] = when_words[(int)m.when];
    d["drive"] = drive_words[(int)m.drive];
    d["detach"] = detach;
    all.append(d);
  }
  return all;
}

py::dict counters() {
  int64_t sums[lsnn::cpu::n_counters];
  lsnn::cpu::take_counters(sums);
  py::dict all;
  for (int c = 0; c < lsnn::cpu::n_counters; c++) all[lsnn::cpu::counter_name(c)] = sums[c];
  return all;
}

}  // namespace

template <size_t n> py::tuple tuple_of(const char* const (&names)[n]) {
  py::tuple all(n);
  for (size_t i = 0; i < n; i++) all[i] = names[i];
  return all;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of lsnn_ext: build information and the table of models.";
  m.def("dynamics", &table, "The table of models, a dict for each model.");
  m.def("surrogates", [] {
    py::list all;
    for (const char* name : lsnn::surrogate_names) all.append(name);
    return all;
  });
  m.def("coefficients", [] {
    py::list all;
    for (const char* name : lsnn::coefficient_names) all.append(name);
    return all;
  });
  m.def("instruction_set", &lsnn::cpu::instruction_set,
        "avx512, avx2, neon or portable; see LSNN_CPU.");
  m.def("instruction_set_flags", &lsnn::cpu::instruction_set_flags,
        "The same with the bits of a vector and the compiler flags.");
  m.def("cached_bytes", &lsnn::cpu::cached_bytes, "Bytes kept for reuse.");
  m.def("empty_cache", &lsnn::cpu::empty_cache, "Returns the memory kept for reuse to the system.");
  m.def("profile", &lsnn::cpu::set_profiling,
        "Turns the counters of the CPU kernels on or off; returns the previous setting.",
        py::arg("on"));
  m.def("counters", &counters,
        "Counters of the CPU kernels since the last call, see csrc/cpu/counters.h; clears them.");
  m.def("take_signal_exception", &lsnn::binding::take_signal_exception,
        "The exception of a signal handler that ended the last pass with "
        "'interrupted by a signal', or None; returned once.");
  m.def(
      "default_options",
      [] { return lsnn::binding::option_list(lsnn::binding::default_options()); },
      "The options of a call without its own, from the environment; in the order of _C.options.");
  m.attr("constants") = tuple_of(lsnn::binding::constant_names);
  m.attr("interface") = lsnn::binding::this_interface;
  m.attr("numbers") = tuple_of(lsnn::binding::number_names);
  m.attr("options") = tuple_of(lsnn::binding::option_names);
  m.attr("products") = tuple_of(lsnn::product_names);
  m.attr("designs") = tuple_of(lsnn::design_names);
  m.attr("kernels") = tuple_of(lsnn::kernels_names);
  m.attr("outputs") = tuple_of(lsnn::binding::output_names);
  m.attr("gradients") = tuple_of(lsnn::binding::gradient_names);
  m.attr("segment") = lsnn::segment;
  m.attr("compiler") = __VERSION__;
  using namespace py::literals;
  m.def("plan", &lsnn::binding::plan, lsnn::binding::plan_text, "T"_a, "B"_a, "N"_a,
        "delays"_a = std::vector<int64_t>{0}, "dtype"_a = "float32", "smooth"_a = false,
        "spikes"_a = 0.02, "active"_a = 0.3, "device"_a = py::none(),
        "options"_a = std::vector<int64_t>{}, "clusters"_a = std::vector<int>{}, "model"_a = "lsnn",
        "bf16_parts"_a = 0);
  m.def("register_neuron", &lsnn::binding::register_neuron, lsnn::binding::register_neuron_text,
        "key"_a, "path"_a);
  m.def("register_program", &lsnn::binding::register_program, lsnn::binding::register_program_text,
        "key"_a, "wide"_a, "code"_a, "constants"_a);
  m.def("register_cuda_neuron", &lsnn::binding::register_cuda_neuron,
        lsnn::binding::register_cuda_neuron_text, "key"_a, "path"_a, "wide"_a, "sizes"_a,
        "has_number_spikes"_a, "has_product"_a);
  m.def("readout_fits", &lsnn::cuda::readout_fits,
        "Whether a readout of O outputs fits the CUDA kernels; wide: in float64.", "N"_a, "O"_a,
        "wide"_a);
  m.def("multiplies_bits", &lsnn::binding::multiplies_bits,
        "Whether the CUDA kernels of that GPU multiply spikes as bits with weights.", "index"_a);
  m.def("costs", &lsnn::binding::costs, lsnn::binding::costs_text);
  using lsnn::binding::Address, lsnn::binding::PreparedLayer;
  py::class_<PreparedLayer>(m, "PreparedLayer", lsnn::binding::prepared_layer_text)
      .def(py::init<bool, int64_t, std::vector<int64_t>, std::vector<double>, std::vector<int64_t>,
                    Address, Address, Address, Address, bool,
                    std::vector<std::pair<Address, int64_t>>, bool>(),
           "wide"_a, "N"_a, "constants"_a, "numbers"_a, "delays"_a, "coefficients"_a, "w"_a,
           "delay"_a, "stored"_a, "autapses"_a, "sources"_a, "recorded"_a = false)
      .def("is_current", &PreparedLayer::is_current, lsnn::binding::is_current_text)
      .def("record", &PreparedLayer::record, py::call_guard<py::gil_scoped_release>(),
           lsnn::binding::record_text, "B"_a, "current"_a, "first"_a, "last"_a, "spikes"_a, "y"_a,
           "bits"_a)
      .def("adjoint", &PreparedLayer::adjoint, py::call_guard<py::gil_scoped_release>(),
           lsnn::binding::adjoint_text, "B"_a, "want"_a, "first"_a, "y"_a, "bits"_a, "g"_a, "to"_a,
           "sums"_a)
      .def_property_readonly("row", &PreparedLayer::row)
      .def("run", &PreparedLayer::run, py::call_guard<py::gil_scoped_release>(),
           lsnn::binding::run_text, "T"_a, "B"_a, "current"_a, "first"_a, "last"_a, "spikes"_a);
  m.def(
      "driver_too_old", &lsnn::cuda::driver_too_old,
      "The message for a driver that is too old for this CUDA runtime; 0: no driver; 13000: 13.0.",
      "runtime"_a, "driver"_a);
#ifdef LSNN_CUDA_KERNELS
  m.attr("cuda") =
      py::dict("version"_a = LSNN_CUDA_VERSION, "architectures"_a = LSNN_CUDA_ARCHITECTURES,
               "driver"_a = lsnn::cuda::oldest_driver(1000 * std::atoi(LSNN_CUDA_VERSION)));
  m.def("take_stamps", &lsnn::cuda::take_stamps,
        "Steps, then cycles of each phase of a step, by kernel; empty without LSNN_STAMPS.");
#else
  m.attr("cuda") = py::none();
#endif
#ifdef LSNN_EMULATOR
  m.def("launches", &lsnn::cuda::launches,
        "Launches of emulated kernels by this thread so far, including those that clear memory.");
  m.attr("emulator") = true;
#else
  m.attr("emulator") = false;
#endif
}
