// Runs a pass on the device of its tensors, with memory of torch and on its current stream.
#pragma once
#include "../cuda/plan.h"
#include "../cuda/product.h"
#include "memory.h"

namespace lsnn::binding {

// host: read by the CUDA kernels.
void run(const ForwardArgs&, const Tensor& like, const cuda::HostCoefficients& host);
void run(const BackwardArgs&, const Tensor& like, const cuda::HostCoefficients& host);
void run(const LeakyForward&, const Tensor& like);
void run(const LeakyBackward&, const Tensor& like);
// On a GPU only with inputs as bits in float32, and without the gradient of the bias. has_bits:
// whether inputs are bits, also if they are empty.
void run_linear(const Linear&, bool backward, const Tensor& like, bool has_bits);
bool multiplies_on_cpu(const Tensor& like, bool has_bits);
// Whether the CUDA kernels of the GPU `index`, or the emulated ones, multiply spikes as bits.
bool multiplies_bits(int64_t index);

// Whether this build has CUDA kernels; the current device.
extern const bool has_cuda;
cuda::Device cuda_device();

// The product for kernels on the device of `like`, which it refers to; under the emulator on the
// host, or with LSNN_EMULATE=torch by torch too.
cuda::Product product_of(const Tensor& like);

// The current CUDA stream of torch for the device of `like`.
void* current_stream(const Tensor& like);

// Whether the CPU kernels run for the device of `like`: false for CPU tensors under the emulator.
bool has_cpu_kernels(const Tensor& like);

}  // namespace lsnn::binding
