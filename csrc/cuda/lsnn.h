// The launch of the kernels that are made for the paper's network, see lsnn_forward.cuh.
#pragma once
#include "neurons.cuh"

namespace lsnn::cuda {

void launch_lsnn(const ForwardJob<float>&, const Pass&, void* stream);

}  // namespace lsnn::cuda
