// Launches of the kernels for the paper's network, see lsnn_forward.cuh and lsnn_backward.cuh.
#pragma once
#include "replay.cuh"

namespace lsnn::cuda {

void launch_lsnn(const ForwardJob<float>&, const Pass&, void* stream);

// Numbers of the backward kernel's workspace.
int64_t lsnn_workspace(const Pass&);
void launch_lsnn(const BackwardJob<float>&, const Pass&, float* workspace, void* stream);

}  // namespace lsnn::cuda
