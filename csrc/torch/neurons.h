// Neurons that are no models of the table, by the key under which Python has registered them.
#pragma once
#include <string>
#include <vector>

#include "../alif.h"
#include "boundary.h"

namespace lsnn::binding {

struct RegisteredNeuron {
  bool wide;          // float64
  const void* table;  // neuron::NeuronTable<T>
  NeuronSizes sizes;
  int64_t coefficients;  // rows that the neuron reads
  bool has_number_spikes;
};

// The neuron registered under a key, for x; null where the key is 0. Raises where there is
// none, where it is of another dtype, and for tensors that the CPU kernels do not take.
const RegisteredNeuron* find_neuron(int64_t key, const Tensor& x, const char* name);

inline constexpr char register_neuron_text[] =
    "Loads a shared object with a neuron, see lsnn_ext/codegen/neuron.h, and keeps it under a key.";
void register_neuron(int64_t key, const std::string& path);

inline constexpr char register_program_text[] =
    "Keeps a neuron that is interpreted, see lsnn_ext/codegen/encode.py, under a key. wide: float64.";
void register_program(int64_t key, bool wide, const Ints& code,
                      const std::vector<double>& constants);

}  // namespace lsnn::binding
