// Registered neurons, which are not in the table of models, by their keys.
#pragma once
#include <string>
#include <vector>

#include "../alif.h"
#include "boundary.h"

namespace lsnn::binding {

struct RegisteredNeuron {
  bool wide;          // float64
  bool on_cpu;
  const void* table;  // neuron::NeuronTable<T>; on a GPU cuda::NeuronModule
  NeuronSizes sizes;
  int64_t coefficients;  // rows that the neuron reads
  bool has_number_spikes;
};

// The neuron of a key; null for key 0. Throws if the key is unknown, or if its kernels are for
// another dtype or device than that of x.
const RegisteredNeuron* find_neuron(int64_t key, const Tensor& x, const char* name);

inline constexpr char register_neuron_text[] =
    "Loads a shared object with a neuron, see lsnn_ext/codegen/neuron.h, and registers its key.";
void register_neuron(int64_t key, const std::string& path);

inline constexpr char register_program_text[] =
    "Registers an interpreted neuron, see lsnn_ext/codegen/encode.py. wide: float64.";
void register_program(int64_t key, bool wide, const Ints& code,
                      const std::vector<double>& constants);

inline constexpr char register_cuda_neuron_text[] =
    "Loads the CUDA kernels of a neuron, see lsnn_ext/codegen/cuda.py, and registers its key. "
    "wide: "
    "float64. sizes: states, currents, coefficients, gradients.";
void register_cuda_neuron(int64_t key, const std::string& path, bool wide, const Ints& sizes,
                          bool has_number_spikes, bool has_product);

}  // namespace lsnn::binding
