// The CUDA path: the whole sequence, forward and backward, on the current device. All pointers are
// to device memory except `delays` and `lengths` of the layer; no function synchronizes. Errors of
// launches are thrown as std::runtime_error with the shape of the launch.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "plan.h"
#include "product.h"

namespace lsnn::cuda {

// Bytes of device memory for the workspace of a pass.
int64_t forward_workspace(const ForwardArgs&, const Plan&);
int64_t backward_workspace(const BackwardArgs&, const Plan&);

// z may be null where spikes are 0 or 1 and saved.bits is not null.
void forward(const ForwardArgs&, const Plan&, void* workspace, const Product&, void* stream);
void backward(const BackwardArgs&, const Plan&, void* workspace, const Product&, void* stream);

// The readout, called by forward() after the recurrence and by backward() before it, with a
// workspace that holds the gradient of the spikes.
void readout_forward(const ForwardArgs&, bool wide, const Device&, void* stream);
int64_t readout_workspace(const BackwardArgs&, bool wide, const Device&);
void readout_backward(BackwardArgs&, bool wide, const Device&, void* workspace, void* stream);

// The leaky integrator of a given product; f64 or f32.
void leaky_forward(const LeakyForward&, bool wide, void* stream);
void leaky_backward(const LeakyBackward&, bool wide, void* stream);

// The projection of inputs as bits, in float32; backward only if has_tensor_cores(). N and I are at
// most 2^28. linear_workspace: bytes of device memory for a direction.
int64_t linear_workspace(const Linear&, const Device&, bool backward);
void linear_forward(const Linear&, const Device&, void* workspace, void* stream);
void linear_backward(const Linear&, const Device&, void* workspace, void* stream);

// In builds with LSNN_STAMPS, by kernel of the paper's network: steps, then cycles of each phase of
// a step, of all blocks since the last call; else empty. Waits for the device.
std::map<std::string, std::vector<int64_t>> take_stamps();

// Launches of this host thread so far, including those that clear memory; only counted by the
// emulator.
uint64_t launches();

// The current device. Throws std::runtime_error without a device.
Device current_device();

}  // namespace lsnn::cuda
