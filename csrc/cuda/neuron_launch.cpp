// Loads and launches the kernels of a generated neuron: by the driver, which is found at run time,
// or by the emulator.
#include <dlfcn.h>

#include <fstream>
#include <iterator>
#include <stdexcept>

#include "neuron.h"

#ifdef LSNN_EMULATOR
#include "../emulator/cuda.h"
#include "../emulator/emulator.h"
#endif

namespace lsnn::cuda {
namespace {

#define LSNN_KERNEL_NAME(name) "lsnn_" #name,
constexpr const char* symbols[] = {LSNN_NEURON_KERNELS(LSNN_KERNEL_NAME)};
#undef LSNN_KERNEL_NAME

}  // namespace

#ifdef LSNN_EMULATOR

NeuronModule load_neuron(const std::string& path, bool has_product) {
  NeuronModule module{{}, has_product};
  void* const object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  for (int i = 0; i < (int)NeuronKernel::count; i++)
    if (!object || !(module.functions[i] = dlsym(object, symbols[i])))
      throw std::runtime_error(std::string("neuron: expected a shared object with kernels, got ") +
                               dlerror());
  return module;
}
void bind_context(int) {}
void launch_neuron(const NeuronModule& module, NeuronKernel kernel, const NeuronGrid& grid,
                   const void* job, void*) {
  using Body = void (*)(const void*, const neuron::Block&);
  const auto body = (Body)module.functions[(int)kernel];
  emulator::launch(
      {dim3((unsigned)grid.blocks), dim3((unsigned)grid.threads), (size_t)grid.shared}, [&] {
        body(job,
             {(int64_t)blockIdx.x, (int)threadIdx.x, (int)blockDim.x, emulator::shared_memory(),
              [] { __syncthreads(); }, [](bool vote) { return __ballot_sync(~0u, vote); }});
      });
}

#else

namespace {

// Functions of libcuda.so.1 from CUDA 12.0 on, declared as in NVIDIA's reference of the driver;
// status 0: success.
struct Driver {
  int (*cuLibraryLoadData)(void** library, const void* code, int* options, void** values,
                           unsigned n_options, int* library_options, void** library_values,
                           unsigned n_library_options);
  int (*cuLibraryGetKernel)(void** kernel, void* library, const char* name);
  int (*cuLaunchKernel)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        void* stream, void** arguments, void** extra);
  int (*cuGetErrorString)(int status, const char** text);
  int (*cuCtxGetCurrent)(void** context);
  int (*cuCtxSetCurrent)(void* context);
  int (*cuDeviceGet)(int* device, int ordinal);
  int (*cuDevicePrimaryCtxRetain)(void** context, int device);

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) throw std::runtime_error("driver: expected libcuda.so.1, got none");
#define LSNN_FIND(name)                                       \
  name = (decltype(name))dlsym(library, #name);               \
  if (!name)                                                  \
  throw std::runtime_error(                                   \
      "driver: expected one for CUDA 12.0 or newer, got one " \
      "without " #name "; update the NVIDIA driver")
    LSNN_FIND(cuLibraryLoadData);
    LSNN_FIND(cuLibraryGetKernel);
    LSNN_FIND(cuLaunchKernel);
    LSNN_FIND(cuGetErrorString);
    LSNN_FIND(cuCtxGetCurrent);
    LSNN_FIND(cuCtxSetCurrent);
    LSNN_FIND(cuDeviceGet);
    LSNN_FIND(cuDevicePrimaryCtxRetain);
#undef LSNN_FIND
  }
  // "neuron: " in front for the kernels, which fail again; "CUDA: " for too little memory and for
  // faults of earlier kernels.
  void check(int status, const std::string& what) const {
    constexpr int out_of_memory = 2, faults = 700, out_of_registers = 701;
    if (status == 0) return;
    const bool lasts = status != out_of_memory && (status < faults || status == out_of_registers);
    const char* text = nullptr;
    cuGetErrorString(status, &text);
    throw std::runtime_error((lasts ? "neuron: " : "CUDA: ") + what + ": " +
                             (text ? text : "unknown error"));
  }
};
const Driver& driver() {
  static const Driver found;
  return found;
}

}  // namespace

NeuronModule load_neuron(const std::string& path, bool has_product) {
  std::ifstream file(path, std::ios::binary);
  std::string code{std::istreambuf_iterator<char>(file), {}};
  if (code.empty()) throw std::runtime_error("neuron: expected a file with kernels, got " + path);
  NeuronModule module{{}, has_product};
  void* library = nullptr;  // for all devices, and never unloaded
  driver().check(
      driver().cuLibraryLoadData(&library, code.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
      "loading the kernels");
  for (int i = 0; i < (int)NeuronKernel::count; i++)
    driver().check(driver().cuLibraryGetKernel(&module.functions[i], library, symbols[i]),
                   std::string("finding the kernel ") + symbols[i]);
  return module;
}
// The runtime, with which torch selects a device, may not have made its context current in this
// thread yet.
void bind_context(int device) {
  void* context = nullptr;
  driver().check(driver().cuCtxGetCurrent(&context), "finding the context");
  if (context) return;
  int handle = 0;
  driver().check(driver().cuDeviceGet(&handle, device), "finding the device");
  driver().check(driver().cuDevicePrimaryCtxRetain(&context, handle), "finding the context");
  driver().check(driver().cuCtxSetCurrent(context), "selecting the context");
}
void launch_neuron(const NeuronModule& module, NeuronKernel kernel, const NeuronGrid& grid,
                   const void* job, void* stream) {
  void* arguments[] = {const_cast<void*>(job)};
  driver().check(driver().cuLaunchKernel(module.functions[(int)kernel], (unsigned)grid.blocks, 1, 1,
                                         (unsigned)grid.threads, 1, 1, (unsigned)grid.shared,
                                         stream, arguments, nullptr),
                 std::string("launching ") + symbols[(int)kernel] + " (" +
                     std::to_string(grid.blocks) + " blocks of " + std::to_string(grid.threads) +
                     " threads)");
}

#endif

}  // namespace lsnn::cuda
