// The CUDA path: the whole sequence, forward and backward, on the current device. All pointers are
// the device's, but `delays` of the layer; nothing here waits for the device. Errors of launches
// are thrown as std::runtime_error with the launch's shape.
#pragma once
#include "plan.h"

namespace lsnn::cuda {

// The products of the design `step`, by the caller's library: out [B,N] += a [B,N] times w, or
// times w transposed; w [N,N] with rows padded(N) long.
struct Product {
  void (*add)(void* context, const void* a, const void* w, bool transposed, void* out);
  void* context;
};

// Bytes of memory on the device that a pass needs for itself.
int64_t forward_workspace(const ForwardArgs&, const Plan&);
int64_t backward_workspace(const BackwardArgs&, const Plan&);

void forward(const ForwardArgs&, const Plan&, void* workspace, const Product&, void* stream);
void backward(const BackwardArgs&, const Plan&, void* workspace, const Product&, void* stream);

// The readout of these passes: after the recurrence; and before it, in memory of its own, where the
// gradient of the spikes then lies. forward and backward call them.
void readout_forward(const ForwardArgs&, Storage, const Device&, void* stream);
int64_t readout_workspace(const BackwardArgs&, Storage, const Device&);
void readout_backward(BackwardArgs&, Storage, const Device&, void* workspace, void* stream);

// The leaky integrator of a product that was made elsewhere; f64 or f32.
void leaky_forward(const LeakyForward&, Storage, void* stream);
void leaky_backward(const LeakyBackward&, Storage, void* stream);

// The projection of inputs that are bits, in float32; backward where has_tensor_cores(). N and I
// are at most 2^28. Bytes of memory on the device that a direction needs for itself.
int64_t linear_workspace(const Linear&, const Device&, bool backward);
void linear_forward(const Linear&, const Device&, void* workspace, void* stream);
void linear_backward(const Linear&, const Device&, void* workspace, void* stream);

// Launches of this thread of the host so far, memory that is cleared too; counted by the emulator
// alone.
uint64_t launches();

// The current device. Throws std::runtime_error when there is none.
Device current_device();

}  // namespace lsnn::cuda
