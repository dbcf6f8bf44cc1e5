// The CUDA path of a generated neuron, by the kernels of lsnn_ext/codegen/cuda_threads.h, in two
// designs. `step`: a host loop over the steps, each a product by a library of the caller and one
// kernel; for any layer. `gather`: one kernel for the whole sequence, with a block for each item
// and the weights in global memory; for small layers with spikes of 0 and 1. Needs neither nvcc nor
// the CUDA headers.
#pragma once
#include <string>

#include "../../lsnn_ext/codegen/cuda_job.h"
#include "../alif.h"
#include "product.h"

namespace lsnn::cuda {

// clang-format off
#define LSNN_KERNEL_NAME(name) name,
enum class NeuronKernel { LSNN_NEURON_KERNELS(LSNN_KERNEL_NAME) count };
#undef LSNN_KERNEL_NAME
// clang-format on

// A loaded neuron: Layer::neuron of a call on a GPU. Its kernels have one number type.
struct NeuronModule {
  void* functions[(int)NeuronKernel::count];
  bool has_product;  // some current has a gradient
};

// Loads the kernels of a file that lsnn_ext/codegen/cuda.py has compiled: machine code or PTX for
// the driver; a shared object under the emulator. Throws std::runtime_error.
NeuronModule load_neuron(const std::string& path, bool has_product);
// Makes the primary context of a device current if this thread has none; not under the emulator.
void bind_context(int device);
struct NeuronGrid {
  int64_t blocks;
  int threads;
  int64_t shared = 0;  // bytes of a block
};
// job: the argument of the kernel, neuron::Job. Throws std::runtime_error.
void launch_neuron(const NeuronModule&, NeuronKernel, const NeuronGrid&, const void* job,
                   void* stream);

// Bytes of device memory for the workspace of a pass. T: float or double.
template <class T> int64_t neuron_workspace(const ForwardArgs&);
template <class T> int64_t neuron_workspace(const BackwardArgs&);
template <class T> void run_neuron(const ForwardArgs&, void* workspace, const Product&,
                                   void* stream);
template <class T> void run_neuron(const BackwardArgs&, void* workspace, const Product&,
                                   void* stream);

}  // namespace lsnn::cuda
