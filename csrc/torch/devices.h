// Runs a pass on the device where its tensors lie, in the memory of torch and on its current
// stream.
#pragma once
#include "../cuda/plan.h"
#include "memory.h"

namespace lsnn::binding {

// told: for the CUDA kernels.
void run(const ForwardArgs&, const Tensor& like, const cuda::Told& told);
void run(const BackwardArgs&, const Tensor& like, const cuda::Told& told);
void run(const LeakyForward&, const Tensor& like);
void run(const LeakyBackward&, const Tensor& like);
// On a GPU with inputs as bits in float32 alone, and without the gradient of the bias. has_bits:
// whether inputs are bits; where there are none, they have no memory.
void run_linear(const Linear&, bool backward, const Tensor& like, bool has_bits);
bool multiplies_on_cpu(const Tensor& like, bool has_bits);
// Whether the kernels of the GPU of that index, or the emulated ones, make products of spikes as
// bits.
bool multiplies_bits(int64_t index);

// Whether this build has CUDA kernels; the current device.
extern const bool has_cuda;
cuda::Device cuda_device();

// Whether the CPU kernels run what lies where `like` does: tests have the CUDA kernels emulated for
// tensors on the CPU.
bool has_cpu_kernels(const Tensor& like);

}  // namespace lsnn::binding
