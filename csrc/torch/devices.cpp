#include "devices.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <type_traits>

#include "../cpu/run.h"
#include "../cuda/run.h"
#include "cuda_neurons.h"
#include "signals.h"

#ifdef LSNN_CUDA_KERNELS  // kernels for a GPU
#include <torch/csrc/stable/accelerator.h>
#endif

namespace lsnn::binding {

#ifdef LSNN_CUDA_KERNELS
const bool has_cuda = true;
cuda::Device cuda_device() { return cuda::current_device(); }
#else
const bool has_cuda = false;
cuda::Device cuda_device() {
  throw std::runtime_error("device: expected a build with CUDA kernels, got one without");
}
#endif

namespace {

bool is_wide(const Tensor& like) { return like.scalar_type() == ScalarType::Double; }

// out += a b by the BLAS library of torch. context: a tensor of the device and the dtype. It calls
// linear with the sums so far as bias, since addmm has scalar arguments, which the dispatcher does
// not take through the stable interface.
void add_by_library(void* context, int64_t M, int64_t K, int64_t N, const cuda::Factor& a,
                    const cuda::Factor& b, void* out) {
  using torch::stable::detail::from;
  const auto& like = *static_cast<const Tensor*>(context);
  auto view = [&](const cuda::Factor& of, int64_t rows, int64_t columns) {
    return torch::stable::from_blob(const_cast<void*>(of.data), Ints{rows, columns},
                                    Ints{of.row, of.column}, like.device(), like.scalar_type());
  };
  const Tensor sum = view({out, N, 1}, M, N), left = view(a, M, K),
               right = view({b.data, b.column, b.row}, N, K);  // transposed
  std::array<StableIValue, 4> stack{from(left), from(right), from(std::optional<Tensor>(sum)),
                                    from(sum)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

cuda::Product product_of(const Tensor& like) {
  if (like.is_cpu() && std::strcmp(std::getenv("LSNN_EMULATE"), "torch")) {
    return {is_wide(like) ? &cuda::add_on_host<double> : &cuda::add_on_host<float>, nullptr};
  }
  return {&add_by_library, const_cast<Tensor*>(&like)};
}

namespace {

template <class T> void run_pass(const ForwardArgs& f, const Parallel& threads) {
  cpu::forward<T>(f, threads);
}
template <class T> void run_pass(const BackwardArgs& f, const Parallel& threads) {
  cpu::backward<T>(f, threads);
}

template <class Args> void run_on_cpu(const Args& f, const Tensor& like) {
  SignalWatch watch;
  Parallel threads = parallel();
  threads.interrupt = watch.interrupt();
  if (is_wide(like)) run_pass<double>(f, threads);
  else run_pass<float>(f, threads);
  watch.finish();
}

#if defined(LSNN_CUDA_KERNELS) || defined(LSNN_EMULATOR)
int64_t workspace_of(const ForwardArgs& f, const cuda::Plan& plan) {
  return cuda::forward_workspace(f, plan);
}
int64_t workspace_of(const BackwardArgs& f, const cuda::Plan& plan) {
  return cuda::backward_workspace(f, plan);
}
void run_kernels(const ForwardArgs& f, const cuda::Plan& plan, void* workspace,
                 const cuda::Product& product, void* stream) {
  cuda::forward(f, plan, workspace, product, stream);
}
void run_kernels(const BackwardArgs& f, const cuda::Plan& plan, void* workspace,
                 const cuda::Product& product, void* stream) {
  cuda::backward(f, plan, workspace, product, stream);
}

template <class Args> void run_as_planned(const Args& f, const Tensor& like,
                                          const cuda::HostCoefficients& host, void* stream) {
  const cuda::Device device = cuda::current_device();
  cuda::Plan plan = cuda::choose(device, f.layer, is_wide(like), {});
  plan.host = host;
  const int64_t bytes = workspace_of(f, plan);
  const Tensor workspace = empty(like, {bytes}, ScalarType::Byte);
  run_kernels(f, plan, workspace.mutable_data_ptr(), product_of(like), stream);
}
#endif

template <class Args>
void run_where_it_lies(const Args& f, const Tensor& like,
                       [[maybe_unused]] const cuda::HostCoefficients& host) {
  if (f.layer.neuron && !has_cpu_kernels(like)) return run_cuda_neuron(f, like);
  if (like.is_cpu()) {
#ifdef LSNN_EMULATOR
    if (!has_cpu_kernels(like)) return run_as_planned(f, like, host, nullptr);
#endif
    return run_on_cpu(f, like);
  }
#ifdef LSNN_CUDA_KERNELS
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  run_as_planned(f, like, host, current_stream(like));
#else
  LSNN_EXPECT(false,
              "current: expected a CPU tensor, got a CUDA tensor; this build has no CUDA kernels");
#endif
}

// A function of libtorch_cuda, which is loaded if there is a CUDA tensor; this module must load
// without it.
template <class F> F torch_cuda_function(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* found = library ? dlsym(library, name) : nullptr;
  LSNN_EXPECT(found, "lsnn_ext: expected libtorch_cuda.so with the function ", name,
              ", got none; is torch a CUDA build?");
  return reinterpret_cast<F>(found);
}

}  // namespace

void* current_stream(const Tensor& like) {
  static const auto get = torch_cuda_function<AOTITorchError (*)(int32_t, void**)>(
      "aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(like.get_device_index(), &stream));
  return stream;
}

bool has_cpu_kernels(const Tensor& like) {
#ifdef LSNN_EMULATOR
  if (std::getenv("LSNN_EMULATE")) return false;
#endif
  return like.is_cpu();
}
void run(const ForwardArgs& f, const Tensor& like, const cuda::HostCoefficients& host) {
  run_where_it_lies(f, like, host);
}
void run(const BackwardArgs& f, const Tensor& like, const cuda::HostCoefficients& host) {
  run_where_it_lies(f, like, host);
}

namespace {

template <class T> void integrate_on_cpu(const LeakyForward& f) {
  cpu::leaky_forward<T>(f, parallel());
}
template <class T> void integrate_on_cpu(const LeakyBackward& f) {
  cpu::leaky_backward<T>(f, parallel());
}
#if defined(LSNN_CUDA_KERNELS) || defined(LSNN_EMULATOR)
void integrate_on_device(const LeakyForward& f, bool wide, void* stream) {
  cuda::leaky_forward(f, wide, stream);
}
void integrate_on_device(const LeakyBackward& f, bool wide, void* stream) {
  cuda::leaky_backward(f, wide, stream);
}
#endif

template <class T> void multiply_on_cpu(const Linear& l, bool backward) {
  if (backward) cpu::linear_backward<T>(l, parallel());
  else cpu::linear_forward<T>(l, parallel());
}
#if defined(LSNN_CUDA_KERNELS) || defined(LSNN_EMULATOR)
void multiply_on_device(const Linear& l, bool backward, const Tensor& like, bool has_bits,
                        void* stream) {
  LSNN_EXPECT(has_bits && like.scalar_type() == ScalarType::Float && (!backward || l.g_rows == l.R),
              "x: expected float32 spikes as bits and a gradient of the same rows for the CUDA "
              "kernels, got others");
  LSNN_EXPECT(l.I <= 1 << 28 && l.N <= 1 << 28,
              "weight: expected at most 2^28 inputs and outputs for spikes as bits, got ", l.I,
              " and ", l.N);
  const cuda::Device device = cuda::current_device();
  LSNN_EXPECT(cuda::has_tensor_cores(device),
              "bits: expected a GPU of compute capability 8.0 or more, got ",
              device.capability / 10, ".", device.capability % 10);
  const Tensor workspace =
      empty(like, {cuda::linear_workspace(l, device, backward)}, ScalarType::Byte);
  (backward ? cuda::linear_backward : cuda::linear_forward)(l, device, workspace.mutable_data_ptr(),
                                                            stream);
}
#endif

template <class Args> void integrate_where_it_lies(const Args& f, const Tensor& like) {
  if (has_cpu_kernels(like)) {
    if (is_wide(like)) integrate_on_cpu<double>(f);
    else integrate_on_cpu<float>(f);
    return;
  }
#if defined(LSNN_CUDA_KERNELS)
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  integrate_on_device(f, is_wide(like), current_stream(like));
#elif defined(LSNN_EMULATOR)
  integrate_on_device(f, is_wide(like), nullptr);
#else
  LSNN_EXPECT(false, "x: expected a CPU tensor, got a CUDA tensor; this build has no CUDA kernels");
#endif
}

}  // namespace

void run(const LeakyForward& f, const Tensor& like) { integrate_where_it_lies(f, like); }
void run(const LeakyBackward& f, const Tensor& like) { integrate_where_it_lies(f, like); }

// Emulated kernels only compute what the CUDA kernels support.
bool multiplies_on_cpu(const Tensor& like, bool has_bits) {
  return has_cpu_kernels(like) || (like.is_cpu() && (is_wide(like) || !has_bits));
}
void run_linear(const Linear& l, bool backward, const Tensor& like, bool has_bits) {
  if (multiplies_on_cpu(like, has_bits)) {
    if (is_wide(like)) multiply_on_cpu<double>(l, backward);
    else multiply_on_cpu<float>(l, backward);
    return;
  }
#if defined(LSNN_CUDA_KERNELS)
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  multiply_on_device(l, backward, like, has_bits, current_stream(like));
#elif defined(LSNN_EMULATOR)
  multiply_on_device(l, backward, like, has_bits, nullptr);
#else
  LSNN_EXPECT(false, "x: expected a CPU tensor, got a CUDA tensor; this build has no CUDA kernels");
#endif
}

bool multiplies_bits([[maybe_unused]] int64_t index) {
#if defined(LSNN_CUDA_KERNELS)
  const torch::stable::accelerator::DeviceGuard guard(
      (torch::stable::accelerator::DeviceIndex)index);
  return cuda::has_tensor_cores(cuda::current_device());
#elif defined(LSNN_EMULATOR)
  return cuda::has_tensor_cores(cuda::current_device());
#else
  return false;
#endif
}

}  // namespace lsnn::binding
