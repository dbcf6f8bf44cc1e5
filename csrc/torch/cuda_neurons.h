// A call of a generated neuron on a GPU, or under the emulator.
#pragma once
#include "../alif.h"
#include "checks.h"

namespace lsnn::binding {

// like: a tensor of the call.
void run_cuda_neuron(const ForwardArgs&, const Tensor& like);
void run_cuda_neuron(const BackwardArgs&, const Tensor& like);

}  // namespace lsnn::binding
