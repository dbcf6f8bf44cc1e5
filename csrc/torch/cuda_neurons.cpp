#include "cuda_neurons.h"

#include <torch/csrc/stable/accelerator.h>

#include "../cuda/neuron.h"
#include "devices.h"

namespace lsnn::binding {
namespace {

template <class T, class Args> void run_as(const Args& f, const Tensor& like, void* stream) {
  const Tensor workspace = empty(like, {cuda::neuron_workspace<T>(f)}, ScalarType::Byte);
  cuda::run_neuron<T>(f, workspace.mutable_data_ptr(), product_of(like), stream);
}

template <class Args> void run_where_it_lies(const Args& f, const Tensor& like) {
  const auto run =
      like.scalar_type() == ScalarType::Double ? &run_as<double, Args> : &run_as<float, Args>;
  if (like.is_cpu()) return run(f, like, nullptr);  // emulated
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  cuda::bind_context(like.get_device_index());
  run(f, like, current_stream(like));
}

}  // namespace

void run_cuda_neuron(const ForwardArgs& f, const Tensor& like) { run_where_it_lies(f, like); }
void run_cuda_neuron(const BackwardArgs& f, const Tensor& like) { run_where_it_lies(f, like); }

}  // namespace lsnn::binding
