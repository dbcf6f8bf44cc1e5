#include "cuda_neurons.h"

#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <cstdlib>
#include <string>

#include "../cuda/neuron.h"
#include "devices.h"

namespace lsnn::binding {
namespace {

// By the BLAS library of torch. It calls linear with the sums so far as bias, since addmm has
// scalar arguments, which the dispatcher does not take through the stable interface.
struct LibraryProduct {
  const Tensor& like;

  Tensor view(const cuda::Factor& of, int64_t rows, int64_t columns) const {
    return torch::stable::from_blob(const_cast<void*>(of.data), Ints{rows, columns},
                                    Ints{of.row, of.column}, like.device(), like.scalar_type());
  }
  static void add(void* context, int64_t M, int64_t K, int64_t N, const cuda::Factor& a,
                  const cuda::Factor& b, void* out) {
    using torch::stable::detail::from;
    const auto& self = *static_cast<const LibraryProduct*>(context);
    const Tensor sum = self.view({out, N, 1}, M, N), left = self.view(a, M, K),
                 right = self.view({b.data, b.column, b.row}, N, K);  // transposed
    std::array<StableIValue, 4> stack{from(left), from(right), from(std::optional<Tensor>(sum)),
                                      from(sum)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
  }
};

// In the order of the CPU path, so that results under the emulator are bitwise identical.
template <class T> void add_in_order(void*, int64_t M, int64_t K, int64_t N, const cuda::Factor& a,
                                     const cuda::Factor& b, void* out) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < K; k++) {
      const T x = ((const T*)a.data)[m * a.row + k * a.column];
      if (x == T(0)) continue;
      for (int64_t n = 0; n < N; n++)
        ((T*)out)[m * N + n] += x * ((const T*)b.data)[k * b.row + n * b.column];
    }
}

template <class T, class Args> void run_as(const Args& f, const Tensor& like, void* stream) {
  LibraryProduct by_library{like};
  cuda::NeuronProduct product{&LibraryProduct::add, &by_library};
  if (like.is_cpu() && std::getenv("LSNN_EMULATE") != std::string("torch"))
    product = {&add_in_order<T>, nullptr};
  const Tensor workspace = empty(like, {cuda::neuron_workspace<T>(f)}, ScalarType::Byte);
  cuda::run_neuron<T>(f, workspace.mutable_data_ptr(), product, stream);
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
